// Package memory reads how much memory this process holds, on Linux.
package memory

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
)

// Peak returns the most memory that the process ever held, in bytes.
func Peak() (int64, error) { return read("VmHWM:") }

// Resident returns the memory that the process holds, in bytes.
func Resident() (int64, error) { return read("VmRSS:") }

// read returns a line of /proc/self/status that is given in kB.
func read(name string) (int64, error) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, fmt.Errorf("memory of this process: %w", err)
	}
	_, rest, ok := bytes.Cut(status, []byte(name))
	if !ok {
		return 0, fmt.Errorf("memory of this process: no line %q in /proc/self/status", name)
	}
	value, _, _ := bytes.Cut(rest, []byte("kB"))
	kb, err := strconv.ParseInt(string(bytes.TrimSpace(value)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("memory of this process: %w", err)
	}
	return kb << 10, nil
}
