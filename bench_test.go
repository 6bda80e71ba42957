package litestream_test

import (
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"example.com/litestream"
)

// quiet silences the loggers of a benchmark's DB.
func quiet(db *litestream.DB) {
	db.Logger = log.New(io.Discard, "", 0)
	for _, r := range db.Replicas {
		r.Logger = db.Logger
	}
}

// reportLatency reports the median and the 99th percentile.
func reportLatency(b *testing.B, lat []time.Duration) {
	slices.Sort(lat)
	b.ReportMetric(float64(lat[len(lat)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(lat[len(lat)*99/100].Microseconds())/1000, "p99-ms")
}

// BenchmarkFsync is the limit for BenchmarkSyncAndWait: 4 KiB written to a new
// file, synced, renamed.
func BenchmarkFsync(b *testing.B) {
	dir := b.TempDir()
	page := make([]byte, 4096)
	var lat []time.Duration
	for i := 0; b.Loop(); i++ {
		began := time.Now()
		name := filepath.Join(dir, fmt.Sprint(i))
		f, err := os.Create(name + ".tmp")
		if err != nil {
			b.Fatal(err)
		}
		if _, err := f.Write(page); err != nil {
			b.Fatal(err)
		}
		if err := f.Sync(); err != nil {
			b.Fatal(err)
		}
		if err := f.Close(); err != nil {
			b.Fatal(err)
		}
		if err := os.Rename(name+".tmp", name); err != nil {
			b.Fatal(err)
		}
		lat = append(lat, time.Since(began))
	}
	reportLatency(b, lat)
}

// BenchmarkSyncAndWait measures the call alone, after a commit of one row.
func BenchmarkSyncAndWait(b *testing.B) {
	db := newDB(b, b.TempDir())
	quiet(db)
	host := openHost(b, db.Path(), "synchronous(NORMAL)")
	mustExec(b, host, "CREATE TABLE t (x)")
	mustOpen(b, db)
	mustSync(b, db)
	var lat []time.Duration
	b.ReportAllocs()
	for b.Loop() {
		mustExec(b, host, "INSERT INTO t VALUES (randomblob(200))")
		began := time.Now()
		mustSync(b, db)
		lat = append(lat, time.Since(began))
	}
	reportLatency(b, lat)
}

// BenchmarkLoneCommit measures, at default settings, the time from a commit on
// an idle database to its segment in the replica's directory.
func BenchmarkLoneCommit(b *testing.B) {
	db := newDB(b, b.TempDir())
	quiet(db)
	host := openHost(b, db.Path(), "synchronous(NORMAL)")
	mustExec(b, host, "CREATE TABLE t (x)")
	mustOpen(b, db)
	mustSync(b, db)
	replica := db.Replicas[0]
	var lat []time.Duration
	for b.Loop() {
		time.Sleep(litestream.DefaultSyncInterval + 100*time.Millisecond) // idle: the interval is over
		before := replica.Stats().Segments
		mustExec(b, host, "INSERT INTO t VALUES (randomblob(200))")
		began := time.Now()
		for replica.Stats().Segments == before {
			time.Sleep(100 * time.Microsecond) // a poll: the client has no event to wait for, and this is a benchmark
		}
		lat = append(lat, time.Since(began))
	}
	reportLatency(b, lat)
}

// BenchmarkSyncIdle measures a look at a database that did not change.
func BenchmarkSyncIdle(b *testing.B) {
	db := newDB(b, b.TempDir())
	quiet(db)
	host := openHost(b, db.Path())
	mustExec(b, host, "CREATE TABLE t (x)")
	mustOpen(b, db)
	b.ReportAllocs()
	for b.Loop() {
		if err := db.Sync(ctx); err != nil {
			b.Fatal(err)
		}
	}
}
