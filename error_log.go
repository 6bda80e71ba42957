package litestream

import (
	"fmt"
	"strings"
	"sync"
)

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
		l.logf("%v", sayOnce(what, "", err))
	case err == nil && old != nil:
		l.logf("%s: recovered", what)
	}
}

func (l *errorLog) lastError() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mu.last
}

// sayOnce adds to an error what was tried, unless it begins with that, and on
// what, if that is not empty.
func sayOnce(op, what string, err error) error {
	if !strings.HasPrefix(err.Error(), op) {
		err = fmt.Errorf("%s: %w", op, err)
	}
	if what != "" {
		err = fmt.Errorf("%s: %w", what, err)
	}
	return err
}
