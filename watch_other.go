//go:build !linux

package litestream

func newFileWatch(chan<- struct{}) fileWatch { return noWatch{} }
