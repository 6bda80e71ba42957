//go:build unix

package litestream_test

import (
	"runtime"
	"syscall"
	"testing"
	"time"
)

// cpuTime returns the processor time that the process has used.
func cpuTime(t testing.TB) time.Duration {
	t.Helper()
	var ru syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &ru); err != nil {
		t.Fatal(err)
	}
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}

// BenchmarkIdle reports the CPU time of 100 idle databases in one second.
func BenchmarkIdle(b *testing.B) {
	const n = 100
	for range n {
		db := newDB(b, b.TempDir())
		quiet(db)
		host := openHost(b, db.Path())
		mustExec(b, host, "CREATE TABLE t (x)")
		mustOpen(b, db)
		mustSync(b, db)
		host.Close()
	}
	runtime.GC()
	time.Sleep(6 * time.Second) // until they rest
	for b.Loop() {
		before := cpuTime(b)
		time.Sleep(10 * time.Second) // nothing happens: that is measured
		b.ReportMetric(float64((cpuTime(b)-before).Microseconds())/10, "cpu-µs/s")
	}
	b.ReportMetric(float64(runtime.NumGoroutine())/n, "goroutines/db")
}
