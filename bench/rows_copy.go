package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// fixture is a database with a history, and its replica by each system. They
// are made once.
type fixture struct {
	size     int64 // bytes of the database, about
	segments int
	group    int // segments of a WAL index
	rows     int // changed by a segment
}

// smallest is the least size of a database, so that it has something to say.
const smallest = 1 << 20

func (b *bench) large() fixture {
	return fixture{size: max(int64(559e6*b.scale), smallest), segments: b.scaled(200, 4), group: 25, rows: 64}
}

func (b *bench) long() fixture {
	return fixture{size: max(int64(8e6*b.scale), smallest), segments: b.scaled(2000, 16), group: 4, rows: 4}
}

// database returns the path of a database of a size, for one system to use:
// v0.5.16 makes tables of its own in it.
func (b *bench) database(size int64, system string) (string, error) {
	return b.once(fmt.Sprintf("database-%d-%s", size, system), func(dir string) error {
		_, err := b.run(job{Kind: "database", System: system, Database: filepath.Join(dir, "db"), Size: size})
		return err
	}, "db")
}

// history returns the replica of a fixture.
func (b *bench) history(f fixture, system string) (string, error) {
	return b.once(fmt.Sprintf("history-%d-%d-%d-%d-%s", f.size, f.segments, f.group, f.rows, system), func(dir string) error {
		path := filepath.Join(dir, "db")
		if _, err := b.run(job{Kind: "database", System: system, Database: path, Size: f.size}); err != nil {
			return err
		}
		m, err := b.run(job{Kind: "history", System: system, Database: path, Replica: filepath.Join(dir, "replica"), N: f.segments, Group: f.group, Rows: f.rows})
		if err == nil {
			b.logf("   %s has %.0f files in %.0f directories", filepath.Base(dir), m["files"], m["directories"])
		}
		return err
	}, "replica")
}

// compressed returns a database compressed by LZ4.
func (b *bench) compressed(size int64) (string, error) {
	return b.once(fmt.Sprintf("compressed-%d", size), func(dir string) error {
		path, err := b.database(size, ours)
		if err != nil {
			return err
		}
		m, err := b.run(job{Kind: "compress", System: limit, Database: path, Replica: filepath.Join(dir, "lz4")})
		if err == nil {
			b.logf("   a database of %.0f MB, LZ4 ratio %.2f", m["bytes"]/1e6, m["ratio"])
		}
		return err
	}, "lz4")
}

// once makes a directory unless an earlier call or run did, and returns the
// path of a file in it.
func (b *bench) once(name string, make func(dir string) error, file string) (string, error) {
	dir := filepath.Join(b.dir, name)
	if _, err := os.Stat(dir); err == nil {
		return filepath.Join(dir, file), nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	unfinished := dir + ".tmp"
	if err := errors.Join(os.RemoveAll(unfinished), os.Mkdir(unfinished, 0o700)); err != nil {
		return "", err
	}
	b.logf("   making %s", name)
	if err := make(unfinished); err != nil {
		return "", err
	}
	return filepath.Join(dir, file), os.Rename(unfinished, dir)
}

// speed returns the megabytes a second of a contender's rounds.
func (s series) speed(name string) samples {
	return s.get(name, "bytes").over(s.get(name, "s")).times(1e-6)
}

func firstSnapshot(b *bench) (line, error) {
	size := b.large().size
	paths := map[string]string{}
	for _, name := range []string{ours, theirs} {
		path, err := b.database(size, name)
		if err != nil {
			return line{}, err
		}
		paths[name] = path
	}
	paths[limit], paths[sqliteAPI] = paths[ours], paths[ours]
	kinds := map[string]string{limit: "compress", ours: "snapshot", theirs: "snapshot", sqliteAPI: "backup"}
	got, err := b.compare(b.contenders(func(name string) job {
		return job{Kind: kinds[name], Database: paths[name]}
	}, limit, ours, theirs, sqliteAPI)...)
	if err != nil {
		return line{}, err
	}
	return b.copyLine(got, "LZ4 to a file, 2 threads, synced", "SQLite's backup, uncompressed", 0.9), nil
}

// copyLine is the line of a row that compares with a limit.
func (b *bench) copyLine(got series, what, api string, goal float64) line {
	base := got.speed(limit)
	b.logf("   processor time, of that of LZ4: %s", got.get(ours, "cpu-s").over(got.get(limit, "cpu-s")))
	cell := func(name string) string {
		if got[name] == nil {
			return ""
		}
		return fmt.Sprintf("%s MB/s; %s of LZ4", short(got.speed(name).median()), got.speed(name).over(base))
	}
	l := line{
		peer:   cell(theirs),
		ours:   cell(ours),
		beside: fmt.Sprintf("%s: %s MB/s", what, base),
		goal:   fmt.Sprintf("≥ %.1f of LZ4", goal),
		met:    got.speed(ours).over(base).median() >= goal,
	}
	if got[sqliteAPI] != nil {
		l.beside += fmt.Sprintf("; %s: %s MB/s", api, got.speed(sqliteAPI))
	}
	return l
}

func largeRestore(b *bench) (line, error) {
	f := b.large()
	lz4, err := b.compressed(f.size)
	if err != nil {
		return line{}, err
	}
	template, err := b.restores(f)
	if err != nil {
		return line{}, err
	}
	path, err := b.database(f.size, ours)
	if err != nil {
		return line{}, err
	}
	got, err := b.compare(b.contenders(func(name string) job {
		switch name {
		case limit:
			return job{Kind: "expand", Replica: lz4, N: 1}
		case sqliteAPI:
			return job{Kind: "backup", Database: path, N: 1}
		}
		return template(name)
	}, limit, ours, theirs, sqliteAPI)...)
	if err != nil {
		return line{}, err
	}
	return b.copyLine(got, "LZ4 to a file, synced", "SQLite's backup of an uncompressed copy", 1), nil
}

// restores makes the replicas of a fixture and returns the jobs that restore
// them.
func (b *bench) restores(f fixture) (func(name string) job, error) {
	replicas := map[string]string{}
	for _, name := range []string{ours, theirs} {
		if name == theirs && !b.peers {
			continue
		}
		replica, err := b.history(f, name)
		if err != nil {
			return nil, err
		}
		replicas[name] = replica
	}
	return func(name string) job { return job{Kind: "restore", Replica: replicas[name], N: f.segments} }, nil
}

func longRestore(b *bench) (line, error) {
	template, err := b.restores(b.long())
	if err != nil {
		return line{}, err
	}
	got, err := b.compare(b.contenders(template, ours, theirs)...)
	if err != nil {
		return line{}, err
	}
	took := got.get(ours, "s")
	return line{
		peer: withUnit(got.get(theirs, "s"), "s"),
		ours: withUnit(took, "s"),
		goal: "≤ 0.12 s",
		met:  took.median() <= 0.12,
	}, nil
}
