package litestream

import (
	"errors"
	"io/fs"
	"os"
	"runtime"
)

// staleWAL is a WAL whose database file was replaced. SQLite would replay it
// into the new file.
type staleWAL struct {
	info fs.FileInfo

	// file keeps the WAL that takes its place from being given its inode number,
	// and so its identity. Windows does not use them again, and does not let
	// anybody remove a file that is open: nil there. SQLite has no locks on a WAL.
	file *os.File
}

func newStaleWAL(path string, info fs.FileInfo) *staleWAL {
	w := &staleWAL{info: info}
	if runtime.GOOS != "windows" {
		w.file, _ = os.Open(path) // without it, all but the number is known
	}
	return w
}

// isAt reports whether the WAL still stands at path. An empty one harms nobody.
func (w *staleWAL) isAt(path string) (bool, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	return os.SameFile(info, w.info) && info.Size() > 0, nil
}

func (w *staleWAL) close() error {
	if w.file == nil {
		return nil
	}
	return w.file.Close()
}
