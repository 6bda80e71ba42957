//go:build unix && !(darwin || dragonfly || freebsd || linux || netbsd || openbsd)

package litestream

import (
	"errors"
	"io"
	"os"
	"syscall"
)

// lockFile takes a POSIX lock, which belongs to the process.
func lockFile(f *os.File) error {
	err := syscall.FcntlFlock(f.Fd(), syscall.F_SETLK, &syscall.Flock_t{
		Type: syscall.F_WRLCK, Whence: io.SeekStart,
	})
	if errors.Is(err, syscall.EACCES) || errors.Is(err, syscall.EAGAIN) {
		return errLockHeld
	}
	return err
}
