package litestream_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The complete program of the README compiles.
func TestReadmeProgram(t *testing.T) {
	if _, err := exec.LookPath("go"); err != nil {
		t.Skipf("no go command to compile it: %v", err)
	}
	_, program, _ := strings.Cut(string(readFile(t, "README.md")), "```go\npackage main\n")
	program, _, ok := strings.Cut(program, "```\n")
	if !ok {
		t.Fatal("there is no program")
	}
	name := filepath.Join(t.TempDir(), "main.go")
	writeFile(t, name, []byte("package main\n"+program))
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", os.DevNull, name).CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
