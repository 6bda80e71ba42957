package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/pierrec/lz4/v4"
	"modernc.org/sqlite"
)

// lz4Concurrency is that of the limits: the machine's two cores.
const lz4Concurrency = 2

// measureCompress compresses j.Database into a file, and syncs it: the limit
// of a snapshot. With j.Replica the result stays there.
func measureCompress(ctx context.Context, j *job) (metrics, error) {
	target := j.Replica
	if target == "" {
		target = filepath.Join(j.Dir, "copy.lz4")
	}
	var synced time.Duration
	cost, err := j.measure(func() (err error) {
		synced, err = convert(j.Database, target, func(w io.Writer, r io.Reader) error {
			zw := lz4.NewWriter(w)
			if err := zw.Apply(
				lz4.BlockSizeOption(lz4.Block256Kb),
				lz4.BlockChecksumOption(true),
				lz4.ChecksumOption(false),
				lz4.ConcurrencyOption(lz4Concurrency),
			); err != nil {
				return err
			}
			// In large pieces, so that concurrency is of use.
			_, err := io.CopyBuffer(struct{ io.Writer }{zw}, struct{ io.Reader }{r}, make([]byte, 1<<20))
			return errors.Join(err, zw.Close())
		})
		return err
	})
	if err != nil {
		return nil, err
	}
	in, err := fileSize(j.Database)
	if err != nil {
		return nil, err
	}
	out, err := fileSize(target)
	if err != nil {
		return nil, err
	}
	return metrics{"s": cost.wall.Seconds(), "cpu-s": cost.cpu.Seconds(), "sync-s": synced.Seconds(), "bytes": float64(in), "ratio": float64(in) / float64(out)}, nil
}

// measureExpand expands j.Replica into a file, and syncs it: the limit of a
// restore. j.N is the concurrency.
func measureExpand(ctx context.Context, j *job) (metrics, error) {
	target := filepath.Join(j.Dir, "copy")
	var synced time.Duration
	cost, err := j.measure(func() (err error) {
		synced, err = convert(j.Replica, target, func(w io.Writer, r io.Reader) error {
			zr := lz4.NewReader(r)
			if err := zr.Apply(lz4.ConcurrencyOption(max(j.N, 1))); err != nil {
				return err
			}
			_, err := io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{zr}, make([]byte, 1<<20))
			return err
		})
		return err
	})
	if err != nil {
		return nil, err
	}
	out, err := fileSize(target)
	return metrics{"s": cost.wall.Seconds(), "cpu-s": cost.cpu.Seconds(), "sync-s": synced.Seconds(), "bytes": float64(out)}, err
}

// convert copies a file through fn and syncs the result. It returns how long
// the sync took.
func convert(source, target string, fn func(w io.Writer, r io.Reader) error) (synced time.Duration, err error) {
	r, err := os.Open(source)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	w, err := os.Create(target)
	if err != nil {
		return 0, err
	}
	if err := fn(w, r); err != nil {
		return 0, errors.Join(err, w.Close())
	}
	began := time.Now()
	err = w.Sync()
	return time.Since(began), errors.Join(err, w.Close())
}

// backuper is what the driver's connections offer.
type backuper interface {
	NewBackup(string) (*sqlite.Backup, error)
	NewRestore(string) (*sqlite.Backup, error)
}

// measureBackup copies j.Database with SQLite's backup API: from a connection
// to a file, or with j.N = 1 from a file into a new database's connection.
func measureBackup(ctx context.Context, j *job) (metrics, error) {
	target := filepath.Join(j.Dir, "copy")
	source := j.Database
	if j.N == 1 {
		source = target
	}
	host, err := sql.Open("sqlite", source)
	if err != nil {
		return nil, err
	}
	defer host.Close()
	conn, err := host.Conn(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	cost, err := j.measure(func() error {
		return conn.Raw(func(dc any) error {
			c, ok := dc.(backuper)
			if !ok {
				return fmt.Errorf("%T has no backup", dc)
			}
			begin, name := c.NewBackup, target
			if j.N == 1 {
				begin, name = c.NewRestore, j.Database
			}
			b, err := begin(name)
			if err != nil {
				return err
			}
			_, err = b.Step(-1)
			return errors.Join(err, b.Finish())
		})
	})
	if err != nil {
		return nil, err
	}
	if err := errors.Join(conn.Close(), host.Close()); err != nil {
		return nil, err
	}
	size, err := fileSize(target)
	return metrics{"s": cost.wall.Seconds(), "bytes": float64(size)}, err
}
