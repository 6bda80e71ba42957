package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"syscall"
	"time"
)

// job is one measurement. It runs in a process of its own: this program,
// started anew.
type job struct {
	Kind     string // a key of jobs
	System   string
	Dir      string        // to work in; exists
	Database string        // that the job reads
	Replica  string        // that the job reads
	N        int           // how many: databases, transactions, samples, …
	Group    int           // how many segments share an index
	Rows     int           // changed by a transaction
	Size     int64         // of the database, in bytes
	Duration time.Duration // of the measurement
	Rate     float64       // transactions a second; 0 is as many as possible

	Profile string // where the CPU profile of the measured part goes, or ""
	Result  string // where the metrics go, as JSON
}

// metrics are what a job measured, by name.
type metrics map[string]float64

// jobs are the measurements by name.
var jobs map[string]func(ctx context.Context, j *job) (metrics, error)

func init() {
	jobs = map[string]func(ctx context.Context, j *job) (metrics, error){
		"database":  buildDatabase,
		"history":   buildHistory,
		"writer":    measureWriter,
		"lone":      measureLoneCommit,
		"syncwait":  measureSyncAndWait,
		"compress":  measureCompress,
		"expand":    measureExpand,
		"backup":    measureBackup,
		"snapshot":  measureSnapshot,
		"restore":   measureRestore,
		"idle":      measureIdle,
		"writemany": measureWriteMany,
	}
}

// jobVariable names the environment variable that makes this program run a
// job: the file that holds it.
const jobVariable = "LITESTREAM_BENCH_JOB"

// childMain runs the job that the environment asks for, and reports whether
// there was one. It does not return if the job fails.
func childMain() bool {
	name := os.Getenv(jobVariable)
	if name == "" {
		return false
	}
	if err := runJob(name); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	return true
}

func runJob(name string) error {
	b, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	var j job
	if err := json.Unmarshal(b, &j); err != nil {
		return err
	}
	fn, ok := jobs[j.Kind]
	if !ok {
		return fmt.Errorf("no job %q", j.Kind)
	}
	m, err := fn(context.Background(), &j)
	if err != nil {
		return fmt.Errorf("%s of %s: %w", j.Kind, j.System, err)
	}
	if b, err = json.Marshal(m); err != nil {
		return err
	}
	return os.WriteFile(j.Result, b, 0o600)
}

// run runs the job in a process of its own, in an empty directory that is
// discarded afterwards unless the job names one.
func (b *bench) run(j job) (m metrics, err error) {
	scratch, err := os.MkdirTemp(b.dir, "job-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.discard(scratch)) }()
	if j.Dir == "" {
		j.Dir = scratch
	}
	if b.profiles != "" {
		b.jobSeq++
		j.Profile = filepath.Join(b.profiles, fmt.Sprintf("%03d-%s-%s.pprof", b.jobSeq, j.Kind, j.System))
	}
	j.Result = filepath.Join(scratch, "result.json")
	text, err := json.Marshal(j)
	if err != nil {
		return nil, err
	}
	name := filepath.Join(scratch, "job.json")
	if err := os.WriteFile(name, text, 0o600); err != nil {
		return nil, err
	}
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	syscall.Sync() // what others wrote is not this job's to write
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), jobVariable+"="+name)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("job %s of %s: %w", j.Kind, j.System, err)
	}
	text, err = os.ReadFile(j.Result)
	if err != nil {
		return nil, err
	}
	return m, json.Unmarshal(text, &m)
}

// keptUntilTheEnd is the size, in bytes, up to which discarded files are kept.
const keptUntilTheEnd = 1 << 20

// discard frees the space that a job used. Its small files, which are many, go
// when all is measured: for each file that it creates, ext4 without a journal
// searches the inodes that were deleted in the last half minute, and the next
// job would pay for that.
func (b *bench) discard(dir string) error {
	b.discarded = append(b.discarded, dir)
	return filepath.WalkDir(dir, func(name string, ent fs.DirEntry, err error) error {
		if err != nil || !ent.Type().IsRegular() {
			return err
		}
		info, err := ent.Info()
		if err != nil || info.Size() <= keptUntilTheEnd {
			return err
		}
		return os.Remove(name)
	})
}

func (b *bench) removeDiscarded() (err error) {
	for _, dir := range b.discarded {
		err = errors.Join(err, os.RemoveAll(dir))
	}
	b.discarded = nil
	return err
}

// measured is what a part of a job cost.
type measured struct {
	wall, cpu time.Duration
}

// measure runs fn, under the CPU profile if the job asks for one.
func (j *job) measure(fn func() error) (c measured, err error) {
	if j.Profile != "" {
		f, err := os.Create(j.Profile)
		if err != nil {
			return c, err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return c, err
		}
		defer pprof.StopCPUProfile()
	}
	before, err := cpuTime()
	if err != nil {
		return c, err
	}
	began := time.Now()
	if err := fn(); err != nil {
		return c, err
	}
	c.wall = time.Since(began)
	after, err := cpuTime()
	c.cpu = after - before
	return c, err
}

// cpuTime returns the processor time that this process has used.
func cpuTime() (time.Duration, error) {
	var ru syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &ru); err != nil {
		return 0, fmt.Errorf("processor time: %w", err)
	}
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano()), nil
}

// collect returns unused memory to the system.
func collect() {
	runtime.GC()
	debug.FreeOSMemory()
}
