package main

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"example.com/litestream/bench/programs/memory"
)

// resources are what the process holds.
type resources struct {
	goroutines, descriptors int
	memory                  int64 // bytes
}

func readResources() (r resources, err error) {
	collect()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return r, err
	}
	r.goroutines, r.descriptors = runtime.NumGoroutine(), len(fds)
	r.memory, err = memory.Resident()
	return r, err
}

// settle is how long a database that was written to may take to come to rest.
const settle = 6 * time.Second

// measureIdle opens j.N databases, lets them come to rest, and measures what
// they cost while nothing happens.
func measureIdle(ctx context.Context, j *job) (metrics, error) {
	for i := range j.N {
		dir := filepath.Join(j.Dir, fmt.Sprint(i))
		if err := os.Mkdir(dir, 0o700); err != nil {
			return nil, err
		}
		host, err := openHost(filepath.Join(dir, "db"))
		if err != nil {
			return nil, err
		}
		for _, query := range []string{insertSchema, "INSERT INTO t(v) VALUES (1)"} {
			if _, err := host.ExecContext(ctx, query); err != nil {
				return nil, err
			}
		}
		if err := host.Close(); err != nil {
			return nil, err
		}
	}
	before, err := readResources()
	if err != nil {
		return nil, err
	}
	streams := make([]stream, j.N)
	opened, err := j.measureUnprofiled(func() error {
		for i := range streams {
			dir := filepath.Join(j.Dir, fmt.Sprint(i))
			s, err := systems[j.System].open(filepath.Join(dir, "db"), filepath.Join(dir, "replica"), false)
			if err != nil {
				return err
			}
			streams[i] = s
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for _, s := range streams {
		if err := s.Sync(ctx); err != nil {
			return nil, err
		}
	}
	time.Sleep(min(settle, j.Duration))
	after, err := readResources()
	if err != nil {
		return nil, err
	}
	idle, err := j.measure(func() error {
		time.Sleep(j.Duration)
		return nil
	})
	if err != nil {
		return nil, err
	}
	for _, s := range streams {
		if err := s.Close(ctx); err != nil {
			return nil, err
		}
	}
	n := float64(j.N)
	return metrics{
		"open-s":        opened.wall.Seconds(),
		"idle-cpu-s":    idle.cpu.Seconds(),
		"goroutines/db": float64(after.goroutines-before.goroutines) / n,
		"fds/db":        float64(after.descriptors-before.descriptors) / n,
		"memory-KB/db":  float64(after.memory-before.memory) / 1000 / n,
	}, nil
}

// measureUnprofiled is measure for what the profile is not about.
func (j *job) measureUnprofiled(fn func() error) (measured, error) {
	other := *j
	other.Profile = ""
	return other.measure(fn)
}

// measureWriteMany measures the processor time of j.N databases that each
// commit once a second. It makes sure that a replica has all of them.
func measureWriteMany(ctx context.Context, j *job) (m metrics, err error) {
	hosts := make([]*sql.DB, j.N)
	writers := make([]*inserter, j.N)
	streams := make([]stream, j.N)
	for i := range hosts {
		dir := filepath.Join(j.Dir, fmt.Sprint(i))
		if err := os.Mkdir(dir, 0o700); err != nil {
			return nil, err
		}
		path := filepath.Join(dir, "db")
		if hosts[i], err = openHost(path); err != nil {
			return nil, err
		}
		if _, err := hosts[i].ExecContext(ctx, insertSchema); err != nil {
			return nil, err
		}
		if writers[i], err = newInserter(ctx, hosts[i]); err != nil {
			return nil, err
		}
		if j.System == alone {
			continue
		}
		if streams[i], err = systems[j.System].open(path, filepath.Join(dir, "replica"), false); err != nil {
			return nil, err
		}
		if err := streams[i].Sync(ctx); err != nil {
			return nil, err
		}
	}
	commits := 0
	cost, err := j.measure(func() error {
		began := time.Now()
		for ; time.Since(began) < j.Duration; commits++ {
			time.Sleep(time.Until(began.Add(time.Duration(commits) * time.Second / time.Duration(j.N))))
			if err := writers[commits%j.N].insert(ctx); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for i, host := range hosts {
		if err := host.Close(); err != nil {
			return nil, err
		}
		if streams[i] == nil {
			continue
		}
		if err := streams[i].Close(ctx); err != nil {
			return nil, err
		}
	}
	if j.System != alone { // one stands for all
		restored := filepath.Join(j.Dir, "restored")
		if err := systems[j.System].restore(ctx, filepath.Join(j.Dir, "0", "replica"), restored); err != nil {
			return nil, err
		}
		if err := checkCount(ctx, restored, "t", writers[0].n); err != nil {
			return nil, err
		}
	}
	return metrics{"cores": cost.cpu.Seconds() / cost.wall.Seconds(), "commits/s": float64(commits) / cost.wall.Seconds()}, nil
}
