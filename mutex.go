package litestream

import "context"

// contextMutex is a mutex of which a context can end the wait: for DB.mu, a
// stuck disk may make that long.
type contextMutex chan struct{} // of capacity 1; full while it is held

func newContextMutex() contextMutex { return make(contextMutex, 1) }

func (m contextMutex) Lock()   { m <- struct{}{} }
func (m contextMutex) Unlock() { <-m }

// LockContext is Lock, or returns the error of ctx, or of a DB that NewDB did
// not make.
func (m contextMutex) LockContext(ctx context.Context) error {
	if m == nil {
		return errNotOpen
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case m <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
