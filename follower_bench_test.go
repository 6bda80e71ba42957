package litestream_test

import (
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"example.com/litestream"
)

// The time from a commit on the primary until a follower in the same process
// has applied it, with 200 commits a second. -benchtime 2000x is 10 s.
func BenchmarkFollowerLag(b *testing.B) {
	dir := b.TempDir()
	primary := litestream.NewDB(filepath.Join(dir, "primary"))
	primary.Logger = testLogger(b)
	host := openHost(b, primary.Path(), "synchronous(NORMAL)")
	mustExec(b, host, "CREATE TABLE t (n INTEGER PRIMARY KEY, s TEXT)")
	mustOpen(b, primary)
	defer primary.Close()
	f := newFollower(b, filepath.Join(dir, "follower"), primary)
	mustOpen(b, f)
	mustCatchUp(b, primary, f)
	reader := openHost(b, f.Path(), "query_only(1)")

	began := time.Now()
	committed := make([]atomic.Int64, b.N) // nanoseconds since began
	lags := make([]time.Duration, 0, b.N)
	started := make(chan struct{})
	done := make(chan error, 1)
	go func() {
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		<-started
		for i := range committed {
			<-tick.C
			committed[i].Store(int64(time.Since(began))) // before the commit: its own time counts, too
			if _, err := host.Exec("INSERT INTO t(n, s) VALUES (?, hex(randomblob(100)))", i); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	b.ResetTimer()
	close(started)
	// a poll, since a benchmark must not cost what WaitPos does
	for seen, pos := 0, f.Pos(); seen < b.N; time.Sleep(100 * time.Microsecond) {
		if f.Pos() == pos {
			continue
		}
		pos = f.Pos()
		var n int
		if err := reader.QueryRow("SELECT count(*) FROM t").Scan(&n); err != nil {
			b.Fatal(err)
		}
		for now := time.Since(began); seen < n; seen++ {
			lags = append(lags, now-time.Duration(committed[seen].Load()))
		}
	}
	b.StopTimer()
	if err := <-done; err != nil {
		b.Fatal(err)
	}
	slices.Sort(lags)
	b.ReportMetric(float64(lags[len(lags)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(lags[len(lags)*99/100].Microseconds())/1000, "p99-ms")
	mustFollow(b, primary, f)
}
