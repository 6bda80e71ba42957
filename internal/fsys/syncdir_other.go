//go:build !unix

package fsys

func syncDir(string) error { return nil }
