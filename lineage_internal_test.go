package litestream

import (
	"errors"
	"path/filepath"
	"testing"

	"example.com/litestream/internal/faultfs"
	"example.com/litestream/internal/fsys"
)

// A process is killed before the name of a generation is durable, and the next
// one uploads it: a power loss must not make it that of another primary.
func TestLineageOfAKilledProcessIsMadeDurable(t *testing.T) {
	const first, second, third = "0000000000000001", "0000000000000002", "0000000000000003"
	for seed := range uint64(20) {
		dir := t.TempDir()
		crash := faultfs.NewCrash(fsys.OS, dir)
		files := faultfs.New(crash)
		process := func() *lineage { return &lineage{fs: files, name: filepath.Join(dir, "lineage")} }
		killed := process()
		if _, err := killed.accept("r", nil, first); err != nil {
			t.Fatal(err)
		}
		files.FailOn(faultfs.SyncDir, errInjected)
		if _, err := killed.accept("r", nil, second); !errors.Is(err, errInjected) {
			t.Fatalf("error %v, want %v", err, errInjected)
		}
		files.Reset()
		if _, err := process().accept("r", []string{first}, second); err != nil {
			t.Fatal(err)
		}
		if err := crash.Crash(seed); err != nil {
			t.Fatal(err)
		}
		foreign, err := process().accept("r", []string{first, second}, third)
		if err != nil || len(foreign) > 0 {
			t.Errorf("seed %d: %v is foreign, error %v", seed, foreign, err)
		}
	}
}
