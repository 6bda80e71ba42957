//go:build unix

package litestream

import (
	"io/fs"
	"syscall"
)

// deleted reports whether an open file has no name left.
func deleted(info fs.FileInfo) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && st.Nlink == 0
}
