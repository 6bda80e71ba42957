package litestream_test

import (
	"database/sql"
	"fmt"
	"os"
	"testing"
	"time"

	"example.com/litestream"
)

// newBenchDB returns an open DB that does nothing by itself, the host's
// connection to it, and an empty table t.
func newBenchDB(b *testing.B) (*litestream.DB, *sql.DB) {
	b.Helper()
	db := newDB(b, b.TempDir())
	quiet(db)
	db.MonitorDelayInterval = time.Hour
	for _, r := range db.Replicas {
		r.MonitorEnabled = false
	}
	host := openHost(b, db.Path(), "synchronous(NORMAL)")
	host.SetMaxOpenConns(1)
	mustExec(b, host, "CREATE TABLE t (x)")
	mustOpen(b, db)
	mustSync(b, db)
	return db, host
}

// BenchmarkCapture measures the capture of commits that are in the WAL
// already: db.Sync alone, without the upload. B/s are those of the WAL.
func BenchmarkCapture(b *testing.B) {
	for _, commits := range []int{1, 8, 1000} {
		b.Run(fmt.Sprintf("commits=%d", commits), func(b *testing.B) {
			db, host := newBenchDB(b)
			insert, err := host.Prepare("INSERT INTO t VALUES (randomblob(200))")
			if err != nil {
				b.Fatal(err)
			}
			defer insert.Close()
			before := db.Stats().Bytes
			b.ReportAllocs()
			b.ResetTimer()
			for range b.N {
				b.StopTimer()
				for range commits {
					if _, err := insert.Exec(); err != nil {
						b.Fatal(err)
					}
				}
				b.StartTimer()
				if err := db.Sync(ctx); err != nil {
					b.Fatal(err)
				}
			}
			b.StopTimer()
			b.SetBytes(int64(db.Stats().Bytes-before) / int64(b.N))
			mustSync(b, db)
			mustEqualRestore(b, db, db.Replicas[0].Client())
		})
	}
}

// BenchmarkSnapshot measures snapshots of 64 MB of which LZ4 removes half.
func BenchmarkSnapshot(b *testing.B) {
	db, host := newBenchDB(b)
	mustExec(b, host, `WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM c WHERE i < 16000)
		INSERT INTO t SELECT CAST(randomblob(1900) || hex(zeroblob(900)) AS BLOB) FROM c`)
	if err := db.Checkpoint(ctx, litestream.CheckpointModeTruncate); err != nil {
		b.Fatal(err)
	}
	mustSync(b, db)
	info, err := os.Stat(db.Path())
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(info.Size())
	b.ReportAllocs()
	before := db.Stats().Replicas[0].Snapshots
	for b.Loop() {
		b.StopTimer() // an index has one snapshot: begin the next
		if err := db.Checkpoint(ctx, litestream.CheckpointModeRestart); err != nil {
			b.Fatal(err)
		}
		mustExec(b, host, "INSERT INTO t VALUES (1)")
		mustSync(b, db)
		b.StartTimer()
		if _, err := db.Replicas[0].Snapshot(ctx); err != nil {
			b.Fatal(err)
		}
	}
	if got := db.Stats().Replicas[0].Snapshots - before; got != uint64(b.N) {
		b.Errorf("%d snapshots were written, want %d", got, b.N)
	}
}
