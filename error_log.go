package litestream

import "sync"

// errorLog logs an error once, until it changes or goes away.
type errorLog struct {
	logf func(format string, a ...any)

	mu struct {
		sync.Mutex // leaf; guards:
		last       error
	}
}

// note records the outcome of a try.
func (l *errorLog) note(what string, err error) {
	l.mu.Lock()
	old := l.mu.last
	l.mu.last = err
	l.mu.Unlock()
	switch {
	case l.logf == nil: // NewReplica did not make the Replica
	case err != nil && (old == nil || old.Error() != err.Error()):
		l.logf("%v", clientError(what, "", err))
	case err == nil && old != nil:
		l.logf("%s: recovered", what)
	}
}

func (l *errorLog) lastError() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mu.last
}
