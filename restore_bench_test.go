package litestream

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"testing"
)

// restoreFileClient serves a restoreMemClient's files from disk.
type restoreFileClient struct {
	*restoreMemClient
	dir string
}

func newRestoreFileClient(b *testing.B, c *restoreMemClient) *restoreFileClient {
	b.Helper()
	f := &restoreFileClient{c, b.TempDir()}
	for pos, file := range c.segments {
		restoreBenchWrite(b, filepath.Join(f.dir, FormatIndex(pos.Index)+FormatOffset(pos.Offset)), file.data)
	}
	for pos, file := range c.snapshots {
		restoreBenchWrite(b, filepath.Join(f.dir, FormatIndex(pos.Index)), file.data)
	}
	return f
}

func restoreBenchWrite(b *testing.B, name string, data []byte) {
	b.Helper()
	if err := os.WriteFile(name, data, 0o600); err != nil {
		b.Fatal(err)
	}
}

func (f *restoreFileClient) SnapshotReader(_ context.Context, _ string, index int) (io.ReadCloser, error) {
	return os.Open(filepath.Join(f.dir, FormatIndex(index)))
}

func (f *restoreFileClient) WALSegmentReader(_ context.Context, pos Pos) (io.ReadCloser, error) {
	return os.Open(filepath.Join(f.dir, FormatIndex(pos.Index)+FormatOffset(pos.Offset)))
}

// BenchmarkRestore restores from files to a file, as a host does at startup.
func BenchmarkRestore(b *testing.B) {
	b.Run("8MB+2000segments", func(b *testing.B) {
		s := newRestoreSource(b, 4096)
		s.insert(2000, 4000)
		s.exec("PRAGMA wal_checkpoint(RESTART)")
		s.insert(1, 1)
		s.snapshot()
		for range 500 {
			for i := range 4 {
				s.exec("UPDATE t SET v = randomblob(4000) WHERE id % 500 = ?", i) // four pages
				s.capture()
			}
			s.restart("RESTART")
		}
		restoreBench(b, s)
	})
	b.Run("large", func(b *testing.B) {
		s := newRestoreSource(b, 4096)
		for range 8 {
			s.exec("WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM c WHERE i < 16000) INSERT INTO t (v) SELECT cast(randomblob(1200) || hex(zeroblob(1200)) AS blob) FROM c")
			s.exec("PRAGMA wal_checkpoint(RESTART)")
		}
		s.insert(1, 1)
		s.snapshot()
		for i := range 200 {
			s.exec("UPDATE t SET v = randomblob(3000) WHERE id BETWEEN ? AND ? + 64", i*600, i*600)
			s.restart("RESTART")
		}
		restoreBench(b, s)
	})
}

func restoreBench(b *testing.B, s *restoreSource) {
	client := newRestoreFileClient(b, s.client)
	s.client = nil
	dir := b.TempDir()
	var size int64
	b.ReportAllocs()
	for b.Loop() {
		path := filepath.Join(dir, "restored.db")
		if _, err := RestoreLatest(context.Background(), client, path, restoreQuiet()); err != nil {
			b.Fatal(err)
		}
		info, err := os.Stat(path)
		if err != nil {
			b.Fatal(err)
		}
		size = info.Size()
		if err := os.Remove(path); err != nil {
			b.Fatal(err)
		}
	}
	b.SetBytes(size)
}
