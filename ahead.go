package litestream

import (
	"context"
	"errors"
	"io"
	"sync"
)

// ahead runs numbered jobs ahead of one consumer, which takes their results in
// order. At most width jobs are running or have a result that was not taken.
// The consumer calls close when it is done, whatever next returned.
type ahead[T any] struct {
	ctx     context.Context
	cancel  context.CancelFunc
	queue   chan chan aheadResult[T] // one per job, in order; closed behind the last
	cur     chan aheadResult[T]      // taken from queue, its result not yet received
	failed  error                    // of a job; next returns it for good
	discard func(T) error            // releases a result that nobody took
	wg      sync.WaitGroup           // dispatcher and jobs
}

type aheadResult[T any] struct {
	v   T
	err error
}

// aheadJobs says what an ahead runs.
type aheadJobs[T any] struct {
	n, width int
	gate     func(ctx context.Context) error             // if not nil, waits before each job starts, in order
	run      func(ctx context.Context, i int) (T, error) // concurrently
	discard  func(T) error
}

// startAhead starts the jobs. Close joins its goroutines.
func startAhead[T any](ctx context.Context, jobs aheadJobs[T]) *ahead[T] {
	a := &ahead[T]{
		queue:   make(chan chan aheadResult[T], max(min(jobs.width, jobs.n), 1)-1),
		discard: jobs.discard,
	}
	a.ctx, a.cancel = context.WithCancel(ctx)
	a.wg.Go(func() { a.dispatch(jobs) })
	return a
}

func (a *ahead[T]) dispatch(jobs aheadJobs[T]) {
	defer close(a.queue)
	for i := range jobs.n {
		ch := make(chan aheadResult[T], 1)
		select {
		case a.queue <- ch:
		case <-a.ctx.Done():
			return
		}
		if jobs.gate != nil {
			if err := jobs.gate(a.ctx); err != nil {
				ch <- aheadResult[T]{err: err}
				return
			}
		}
		a.wg.Go(func() {
			v, err := jobs.run(a.ctx, i)
			ch <- aheadResult[T]{v, err}
		})
	}
}

// next waits for the next job's result, which the caller then owns. Behind the
// last job it returns io.EOF; a job's error ends the sequence. When ctx ends
// first, a later call can still take the same result.
func (a *ahead[T]) next(ctx context.Context) (v T, err error) {
	if a.failed != nil {
		return v, a.failed
	}
	if a.cur == nil {
		select {
		case ch, ok := <-a.queue:
			if !ok {
				if err := a.ctx.Err(); err != nil {
					return v, err
				}
				return v, io.EOF
			}
			a.cur = ch
		case <-ctx.Done():
			return v, ctx.Err()
		}
	}
	select {
	case r := <-a.cur:
		a.cur, a.failed = nil, r.err
		return r.v, r.err
	case <-ctx.Done():
		return v, ctx.Err()
	}
}

// close ends the jobs, waits for them, and discards what was not taken.
func (a *ahead[T]) close() error {
	a.cancel()
	a.wg.Wait()
	err := a.drop(a.cur)
	a.cur = nil
	for ch := range a.queue {
		err = errors.Join(err, a.drop(ch))
	}
	return err
}

func (a *ahead[T]) drop(ch chan aheadResult[T]) error {
	if ch == nil {
		return nil
	}
	r := <-ch // what is in the queue has got a result
	if r.err != nil {
		return nil // the consumer has seen an earlier one, or wants none
	}
	return a.discard(r.v)
}
