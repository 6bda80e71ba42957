//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package litestream

import (
	"errors"
	"os"
	"syscall"
)

// lockFile takes flock(2)'s exclusive lock, which belongs to the open file.
func lockFile(f *os.File) error {
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return errLockHeld
		}
		if !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}
