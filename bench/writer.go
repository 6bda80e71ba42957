package main

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"io/fs"
	"net"
	"path/filepath"
	"sync"
	"time"
)

// insertBytes is the length of the rows that writers insert, one a
// transaction.
const insertBytes = 200

const insertSchema = "CREATE TABLE t (id INTEGER PRIMARY KEY, v BLOB)"

// inserter inserts rows, each in a transaction of its own.
type inserter struct {
	stmt *sql.Stmt
	row  [insertBytes]byte
	n    int
}

func newInserter(ctx context.Context, host *sql.DB) (*inserter, error) {
	stmt, err := host.PrepareContext(ctx, "INSERT INTO t(v) VALUES (?)")
	return &inserter{stmt: stmt}, err
}

func (w *inserter) insert(ctx context.Context) error {
	rand.Read(w.row[:])
	if _, err := w.stmt.ExecContext(ctx, w.row[:]); err != nil {
		return err
	}
	w.n++
	return nil
}

// write inserts rows for d, at rate transactions a second if that is not 0.
// What a stall of the machine delayed is left out, since a burst of many
// transactions would cost less for each.
func (w *inserter) write(ctx context.Context, d time.Duration, rate float64) (n int, err error) {
	began := time.Now()
	due := began
	for ; time.Since(began) < d; n++ {
		if rate > 0 {
			time.Sleep(time.Until(due))
			due = due.Add(time.Duration(float64(time.Second) / rate))
			if now := time.Now(); now.Sub(due) > stall {
				due = now
			}
		}
		if err := w.insert(ctx); err != nil {
			return n, err
		}
	}
	return n, nil
}

// stall is how late a paced writer may be before it gives up catching up.
const stall = 5 * time.Millisecond

// measureWriter measures a program that inserts rows while it is replicated.
// It makes sure that the replica has all of them.
//
// Like every web application, with replication and without, it listens on a
// socket. A goroutine that waits in the runtime's network poller makes each
// time.Sleep of a paced writer wake another thread: that is the price of this
// program, not of replication.
func measureWriter(ctx context.Context, j *job) (metrics, error) {
	stop, err := listen()
	if err != nil {
		return nil, err
	}
	defer stop()
	path, replica := filepath.Join(j.Dir, "db"), filepath.Join(j.Dir, "replica")
	host, err := openHost(path)
	if err != nil {
		return nil, err
	}
	defer host.Close()
	if _, err := host.ExecContext(ctx, insertSchema); err != nil {
		return nil, err
	}
	var s stream
	if j.System != alone {
		if s, err = systems[j.System].open(path, replica, false); err != nil {
			return nil, err
		}
		if err := s.Sync(ctx); err != nil {
			return nil, err
		}
	}
	w, err := newInserter(ctx, host)
	if err != nil {
		return nil, err
	}
	if _, err := w.write(ctx, j.Duration/5, j.Rate); err != nil { // until the caches are warm
		return nil, err
	}

	var n int
	cost, err := j.measure(func() (err error) {
		n, err = w.write(ctx, j.Duration, j.Rate)
		return err
	})
	if err != nil {
		return nil, err
	}
	// SQLite never shortens the file while it is in use, so that it is as
	// long as the WAL ever was.
	wal, err := fileSize(path + "-wal")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if err := host.Close(); err != nil {
		return nil, err
	}
	if s != nil {
		if err := s.Close(ctx); err != nil {
			return nil, err
		}
		restored := filepath.Join(j.Dir, "restored")
		if err := systems[j.System].restore(ctx, replica, restored); err != nil {
			return nil, err
		}
		if err := checkCount(ctx, restored, "t", w.n); err != nil {
			return nil, err
		}
	}
	return metrics{
		"tx/s":      float64(n) / cost.wall.Seconds(),
		"cpu-us/tx": float64(cost.cpu.Microseconds()) / float64(n),
		"wal-pages": float64(wal) / (4096 + 24),
	}, nil
}

// listen accepts connections on a free port of this machine until stop, which
// joins it.
func listen() (stop func(), err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	})
	return func() {
		l.Close()
		wg.Wait()
	}, nil
}
