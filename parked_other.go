//go:build !unix

package litestream

import "io/fs"

// deleted reports false: descriptors are closed without it.
func deleted(fs.FileInfo) bool { return false }
