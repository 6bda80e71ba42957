package fileclient

import (
	"path/filepath"
	"testing"
)

// A name that is taken for a file of the replica is the very name under which
// the client looks for that file: what is listed can be read.
func FuzzNames(f *testing.F) {
	for _, name := range []string{
		"0000000000000001.snapshot.lz4", "00000001.snapshot.lz4", "7fffffffffffffff.snapshot.lz4",
		"ffffffffffffffff.snapshot.lz4", "0000000000001020.wal.lz4", "00000001_00001020.wal.lz4",
		"00000001_00001020.wal.lz4.0123456789abcdef-1.tmp", "../0000000000000001.snapshot.lz4", "_.wal.lz4", "",
		"000000010000000000000001.snapshot.lz4", "0000000A.snapshot.lz4", "+0000001.snapshot.lz4",
	} {
		f.Add(name)
	}
	const generation = "0123456789abcdef"
	c := NewFileReplicaClient("replica")
	f.Fuzz(func(t *testing.T, name string) {
		if got, ok := parseSnapshotName(name); ok {
			path, err := c.SnapshotPath(generation, got.index)
			if err != nil {
				t.Fatalf("%q is listed as snapshot %d: %v", name, got.index, err)
			}
			if got.rank == 1 {
				path = legacySnapshotPath(path, got.index)
			}
			if filepath.Base(path) != name {
				t.Fatalf("%q is listed, but read from %s", name, path)
			}
		}
		for _, parse := range []func(string) (file, bool){
			func(name string) (file, bool) { return parseSegmentName(7, name) }, parseLegacySegmentName,
		} {
			got, ok := parse(name)
			if !ok {
				continue
			}
			path, err := c.WALSegmentPath(generation, got.index, got.offset)
			if err != nil {
				t.Fatalf("%q is listed as segment %d/%d: %v", name, got.index, got.offset, err)
			}
			if got.rank == 1 {
				path = legacySegmentPath(path, got.index, got.offset)
			}
			if filepath.Base(path) != name {
				t.Fatalf("%q is listed, but read from %s", name, path)
			}
		}
	})
}
