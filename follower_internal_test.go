package litestream

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"example.com/litestream/internal/faultfs"
	"example.com/litestream/internal/fsys"
)

// A state that is no longer true does not come back with a power loss.
func TestFollowerState_RemovalIsDurable(t *testing.T) {
	for seed := range uint64(30) {
		dir := t.TempDir()
		name := filepath.Join(dir, "follower")
		if err := os.WriteFile(name, []byte("state"), 0o600); err != nil {
			t.Fatal(err)
		}
		crash := faultfs.NewCrash(fsys.OS, dir)
		if err := errors.Join(removeIfExists(crash, name), crash.Crash(seed)); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(name); !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("seed %d: it is back: %v", seed, err)
		}
	}
}
