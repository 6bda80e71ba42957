package litestream

import "errors"

// fileWatch tells a monitor that a file may have changed. Each arming yields
// at most one event, so a saturated writer costs one event for each capture.
type fileWatch interface {
	// arm watches the file at path from now on. An error means that there will
	// be no event, and that the caller has to poll.
	arm(path string) error

	close()
}

var errNoWatch = errors.New("files cannot be watched")

// noWatch is the fileWatch of systems without one.
type noWatch struct{}

func (noWatch) arm(string) error { return errNoWatch }
func (noWatch) close()           {}

// wake makes an event pending, if none is.
func wake(ch chan<- struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}
