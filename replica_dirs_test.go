package litestream_test

import (
	"os"
	"path/filepath"
	"testing"

	"example.com/litestream"
	"example.com/litestream/fileclient"
)

// A directory that a replica cannot have for itself is refused by Open.
func TestReplicaDirs_AreForOneReplicaAlone(t *testing.T) {
	dir := t.TempDir()
	open := func(name string, replicas ...string) error {
		db := litestream.NewDB(filepath.Join(dir, name))
		db.Logger = testLogger(t)
		for i, path := range replicas {
			r := litestream.NewReplica(db, string(rune('a'+i)), fileclient.NewFileReplicaClient(path))
			r.Logger = db.Logger
			db.Replicas = append(db.Replicas, r)
		}
		t.Cleanup(func() {
			if err := db.Close(); err != nil {
				t.Error(err)
			}
		})
		return db.Open()
	}
	if err := os.Symlink(dir, filepath.Join(dir, "link")); err != nil {
		t.Skipf("no symbolic links here: %v", err)
	}
	second := filepath.Join(dir, "second")
	for _, tt := range []struct {
		want     string
		replicas []string
	}{
		{"is the database itself", []string{second}},
		{"which the library prunes", []string{second + litestream.MetaDirSuffix}},
		{"which the library prunes", []string{filepath.Join(dir, "link", "second"+litestream.MetaDirSuffix, "x")}},
		{`replicas "a" and "b"`, []string{filepath.Join(dir, "x"), filepath.Join(dir, "link", "y", "..", "x")}},
	} {
		mustErrorContains(t, open("second", tt.replicas...), tt.want)
	}
	if err := open("second", filepath.Join(dir, "x"), filepath.Join(dir, "replica")); err != nil {
		t.Errorf("a directory for each: %v", err)
	}
}
