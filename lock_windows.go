package litestream

import (
	"errors"
	"os"
	"syscall"
	"unsafe"
)

var procLockFileEx = syscall.NewLazyDLL("kernel32.dll").NewProc("LockFileEx")

// lockFile locks one byte far behind the end of the file, so that others can
// still read who holds the lock.
func lockFile(f *os.File) error {
	const (
		exclusive       = 2
		failImmediately = 1
		lockViolation   = syscall.Errno(33)
	)
	ov := syscall.Overlapped{Offset: 0x7fffffff}
	r, _, err := procLockFileEx.Call(f.Fd(), exclusive|failImmediately, 0, 1, 0, uintptr(unsafe.Pointer(&ov)))
	if r != 0 {
		return nil
	}
	if errors.Is(err, lockViolation) {
		return errLockHeld
	}
	return err
}
