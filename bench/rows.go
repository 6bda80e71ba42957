package main

import (
	"fmt"
	"slices"
	"time"

	"example.com/litestream"
)

func saturatedWriter(b *bench) (line, error) {
	got, err := b.compare(b.contenders(func(string) job {
		return job{Kind: "writer", Duration: b.lasting(5*time.Second, 300*time.Millisecond)}
	}, alone, ours, theirs)...)
	if err != nil {
		return line{}, err
	}
	base := got.get(alone, "tx/s")
	ratio := got.get(ours, "tx/s").over(base)
	wal := slices.Max(got.get(ours, "wal-pages"))
	const maxWAL = 2 * litestream.DefaultMaxCheckpointPageN
	return line{
		peer:   got.get(theirs, "tx/s").over(base).String(),
		ours:   fmt.Sprintf("%s, WAL at most %.0f pages", ratio, wal),
		beside: "alone: " + base.String() + " tx/s",
		goal:   fmt.Sprintf("≥ 0.90, WAL < %d pages", maxWAL),
		met:    ratio.median() >= 0.90 && wal < maxWAL,
	}, nil
}

// pacedRate is the transactions a second of the paced writer.
const pacedRate = 800

func pacedWriter(b *bench) (line, error) {
	got, err := b.compare(b.contenders(func(string) job {
		return job{Kind: "writer", Duration: b.lasting(10*time.Second, 300*time.Millisecond), Rate: pacedRate}
	}, alone, ours, theirs)...)
	if err != nil {
		return line{}, err
	}
	base := got.get(alone, "cpu-us/tx")
	ratio := got.get(ours, "cpu-us/tx").over(base)
	l := line{
		peer:   got.get(theirs, "cpu-us/tx").over(base).String(),
		ours:   ratio.String(),
		beside: "alone: " + base.String() + " µs",
		goal:   "≤ 1.10",
		met:    ratio.median() <= 1.10,
	}
	// Fewer transactions share the cost of a capture.
	if rate := min(got.get(ours, "tx/s").median(), got.get(alone, "tx/s").median()); rate < 0.9*pacedRate {
		l.beside += fmt.Sprintf("; the machine was too busy: %.0f tx/s", rate)
		l.met = false
	}
	return l, nil
}

func loneCommit(b *bench) (line, error) {
	got, err := b.compare(b.contenders(func(string) job {
		return job{Kind: "lone", N: b.scaled(10, 1)}
	}, limit, ours, theirs)...)
	if err != nil {
		return line{}, err
	}
	lag := got.get(ours, "p50-ms")
	return line{
		peer:   withUnit(got.get(theirs, "p50-ms"), "ms"),
		ours:   withUnit(lag, "ms"),
		beside: "10 ms and 4 KiB written, synced, renamed: " + withUnit(got.get(limit, "p50-ms"), "ms"),
		goal:   "≤ 15 ms",
		met:    lag.median() <= 15,
	}, nil
}

func syncAndWait(b *bench) (line, error) {
	got, err := b.compare(b.contenders(func(string) job {
		return job{Kind: "syncwait", N: b.scaled(500, 20)}
	}, limit, ours, theirs)...)
	if err != nil {
		return line{}, err
	}
	took := got.get(ours, "p50-ms")
	return line{
		peer:   withUnit(got.get(theirs, "p50-ms"), "ms"),
		ours:   withUnit(took, "ms"),
		beside: "4 KiB written, synced, renamed: " + withUnit(got.get(limit, "p50-ms"), "ms"),
		goal:   "≤ 1.5 ms",
		met:    took.median() <= 1.5,
	}, nil
}

func withUnit(s samples, unit string) string {
	if len(s) == 0 {
		return ""
	}
	return s.String() + " " + unit
}

func idleCPU(b *bench) (line, error) {
	got, err := b.idle()
	if err != nil {
		return line{}, err
	}
	cpu := got.get(ours, "idle-cpu-s")
	return line{
		peer: withUnit(got.get(theirs, "idle-cpu-s"), "s"),
		ours: withUnit(cpu, "s"),
		goal: "≤ 0.006 s",
		met:  cpu.median() <= 0.006,
	}, nil
}

func idleResources(b *bench) (line, error) {
	got, err := b.idle()
	if err != nil {
		return line{}, err
	}
	cell := func(name string) string {
		if got[name] == nil {
			return ""
		}
		return fmt.Sprintf("%s; %s; %s KB", got.get(name, "goroutines/db"), got.get(name, "fds/db"), got.get(name, "memory-KB/db"))
	}
	return line{
		peer: cell(theirs),
		ours: cell(ours),
		goal: "≤ 2; 5; 200 KB",
		met: got.get(ours, "goroutines/db").median() < 2.5 && got.get(ours, "fds/db").median() < 5.5 &&
			got.get(ours, "memory-KB/db").median() <= 200,
	}, nil
}

// idle measures idle databases once for the two rows that need it.
func (b *bench) idle() (series, error) {
	if b.idleSeries != nil {
		return b.idleSeries, nil
	}
	got, err := b.compare(b.contenders(func(string) job {
		return job{Kind: "idle", N: b.scaled(100, 5), Duration: b.lasting(20*time.Second, 300*time.Millisecond)}
	}, ours, theirs)...)
	b.idleSeries = got
	return got, err
}
