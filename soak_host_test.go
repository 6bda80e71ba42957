package litestream_test

import (
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"
)

// transaction runs statements in one transaction.
func (s *soak) transaction(host *sql.DB, fn func(exec func(query string, args ...any)) (commit bool)) (err error) {
	c, err := host.Conn(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	exec := func(query string, args ...any) {
		if err == nil {
			if _, err = c.ExecContext(ctx, query, args...); err != nil {
				err = fmt.Errorf("%s: %w", query, err)
			}
		}
	}
	exec("BEGIN IMMEDIATE")
	if fn(exec) {
		exec("COMMIT")
	} else {
		exec("ROLLBACK")
	}
	if err == nil {
		s.commits.Add(1)
	}
	return err
}

func (s *soak) writer(i int) {
	host := s.connect("cache_size(20)")
	n := 0
	s.repeat("writer", func() error {
		rows, size := 1+rand.N(4), 300
		if rand.N(200) == 0 {
			rows, size = 200, 20_000 // spills
		}
		commit := rand.N(20) > 0
		err := s.transaction(host, func(exec func(string, ...any)) bool {
			for k := range rows {
				exec("INSERT INTO t VALUES (?, ?, randomblob(?))", i, n+k+1, rand.N(size))
			}
			exec("INSERT OR REPLACE INTO counter VALUES (?, ?)", i, n+rows)
			return commit
		})
		if err == nil && commit {
			n += rows
		}
		s.pause(4 * time.Millisecond)
		return err
	})
}

// keeper deletes, vacuums, and changes the schema.
func (s *soak) keeper() {
	host := s.connect()
	exec := func(query string, args ...any) error {
		if _, err := host.Exec(query, args...); err != nil {
			return fmt.Errorf("%s: %w", query, err)
		}
		return nil
	}
	steps := []func() error{
		func() error { return exec("VACUUM") },
		func() error {
			return errors.Join(exec("DROP INDEX IF EXISTS extra"), exec("CREATE INDEX extra ON t (n, writer)"))
		},
		func() error {
			return errors.Join(exec("CREATE TABLE IF NOT EXISTS scratch AS SELECT * FROM t LIMIT 500"),
				exec("ALTER TABLE scratch ADD COLUMN more"), exec("DROP TABLE scratch"))
		},
		func() error { // a phase of many deletes
			for range 50 {
				if err := exec("DELETE FROM t WHERE (writer, n) IN (SELECT writer, n FROM t WHERE n < (SELECT min(n) FROM counter) - 500 LIMIT 40)"); err != nil || !s.pause(10*time.Millisecond) {
					return err
				}
			}
			return exec("DELETE FROM t WHERE n < (SELECT min(n) FROM counter) - 1000")
		},
		func() error {
			return errors.Join(exec("INSERT INTO pile(x) SELECT randomblob(3000) FROM t LIMIT 300"), exec("DELETE FROM pile WHERE id % 3 > 0"),
				exec("DELETE FROM pile WHERE id < (SELECT max(id) FROM pile) - 1000"))
		},
	}
	s.repeat("keeper", func() error {
		s.pause(time.Second)
		return steps[rand.N(len(steps))]()
	})
}

// reader reads; a long one holds its transaction for seconds now and then.
func (s *soak) reader(hold time.Duration) {
	host := s.connect()
	s.repeat("reader", func() (err error) {
		if !s.pause(2 * hold) {
			return nil
		}
		tx, err := host.Begin()
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, tx.Rollback()) }()
		before, err := soakCounters(tx)
		if err != nil {
			return err
		}
		s.pause(hold)
		after, err := soakCounters(tx)
		if err == nil && after != before {
			err = fmt.Errorf("one transaction reads %d and %d", before, after)
		}
		s.reads.Add(1)
		return err
	})
}
