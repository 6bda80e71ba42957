package main

import (
	"context"
	"database/sql"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"path/filepath"

	_ "modernc.org/sqlite"
)

// The host's connections are those that the README asks for. The automatic
// checkpoint stays at its default.
var hostPragmas = []string{"busy_timeout(5000)", "journal_mode(WAL)", "synchronous(NORMAL)"}

// openHost opens the one connection of the program that is replicated.
func openHost(path string) (*sql.DB, error) {
	q := url.Values{"_pragma": hostPragmas}
	host, err := sql.Open("sqlite", (&url.URL{Scheme: "file", OmitHost: true, Path: path, RawQuery: q.Encode()}).String())
	if err != nil {
		return nil, err
	}
	host.SetMaxOpenConns(1)
	return host, host.Ping()
}

// rowBytes is the length of a row of the databases that buildDatabase makes.
const rowBytes = 1000

// rowText returns a row that LZ4 halves: words of a small vocabulary, with
// numbers in between.
func rowText(rng *rand.Rand) []byte {
	b := make([]byte, 0, rowBytes+32)
	for len(b) < rowBytes {
		if rng.IntN(100) < wordShare {
			b = append(b, vocabulary[rng.IntN(len(vocabulary))]...)
		} else {
			b = fmt.Appendf(b, "%012x", rng.Uint64()>>16)
		}
		b = append(b, ' ')
	}
	return b[:rowBytes]
}

// wordShare is the percentage of words; it makes the LZ4 ratio about 2.04.
const wordShare = 84

var vocabulary = makeVocabulary(700)

func makeVocabulary(n int) (words []string) {
	rng := rand.New(rand.NewPCG(1, 2))
	const letters = "etaoinshrdlucmfw"
	for range n {
		w := make([]byte, 4+rng.IntN(9))
		for i := range w {
			w[i] = letters[rng.IntN(len(letters))]
		}
		words = append(words, string(w))
	}
	return words
}

// schema holds the rows, and in applied one row for each segment that a
// history adds.
const schema = `CREATE TABLE t (id INTEGER PRIMARY KEY, v BLOB);
CREATE TABLE applied (id INTEGER PRIMARY KEY);`

// buildDatabase makes the database j.Database of about j.Size bytes.
func buildDatabase(ctx context.Context, j *job) (metrics, error) {
	host, err := openHost(j.Database)
	if err != nil {
		return nil, err
	}
	defer host.Close()
	for _, query := range []string{"PRAGMA synchronous=OFF", "PRAGMA wal_autocheckpoint=100000", schema} {
		if _, err := host.ExecContext(ctx, query); err != nil {
			return nil, err
		}
	}
	rng := rand.New(rand.NewPCG(3, 4))
	const perPage, pageSize = 4, 4096 // of rowBytes each
	rows := max(j.Size/pageSize*perPage, perPage)
	for done := int64(0); done < rows; {
		tx, err := host.BeginTx(ctx, nil)
		if err != nil {
			return nil, err
		}
		insert, err := tx.PrepareContext(ctx, "INSERT INTO t(v) VALUES (?)")
		if err != nil {
			return nil, err
		}
		for range min(rows-done, 20000) {
			if _, err := insert.ExecContext(ctx, rowText(rng)); err != nil {
				return nil, err
			}
			done++
		}
		if err := tx.Commit(); err != nil {
			return nil, err
		}
	}
	if _, err := host.ExecContext(ctx, "PRAGMA wal_checkpoint(TRUNCATE)"); err != nil {
		return nil, err
	}
	if err := host.Close(); err != nil {
		return nil, err
	}
	size, err := fileSize(j.Database)
	return metrics{"bytes": float64(size), "rows": float64(rows)}, err
}

// buildHistory replicates j.Database to j.Replica: a snapshot, then j.N
// segments of j.Rows changed rows, of which j.Group share an index.
func buildHistory(ctx context.Context, j *job) (m metrics, err error) {
	host, err := openHost(j.Database)
	if err != nil {
		return nil, err
	}
	defer host.Close()
	var rows int64
	if err := host.QueryRowContext(ctx, "SELECT max(id) FROM t").Scan(&rows); err != nil {
		return nil, err
	}
	s, err := systems[j.System].open(j.Database, j.Replica, true)
	if err != nil {
		return nil, err
	}
	if err := s.Sync(ctx); err != nil {
		return nil, err
	}
	rng := rand.New(rand.NewPCG(5, 6))
	for i := range j.N {
		if i > 0 && i%j.Group == 0 {
			if err := s.Restart(ctx); err != nil {
				return nil, err
			}
		}
		tx, err := host.BeginTx(ctx, nil)
		if err != nil {
			return nil, err
		}
		for range j.Rows {
			if _, err := tx.ExecContext(ctx, "UPDATE t SET v = ? WHERE id = ?", rowText(rng), 1+rng.Int64N(rows)); err != nil {
				return nil, err
			}
		}
		if _, err := tx.ExecContext(ctx, "INSERT INTO applied DEFAULT VALUES"); err != nil {
			return nil, err
		}
		if err := tx.Commit(); err != nil {
			return nil, err
		}
		if err := s.Sync(ctx); err != nil {
			return nil, err
		}
	}
	if err := host.Close(); err != nil {
		return nil, err
	}
	if err := s.Close(ctx); err != nil {
		return nil, err
	}
	return countFiles(j.Replica)
}

// checkHistory makes sure that a restored database holds the last of n
// segments.
func checkHistory(ctx context.Context, path string, n int) error {
	return checkCount(ctx, path, "applied", n)
}

// checkCount makes sure that a table of a database has n rows.
func checkCount(ctx context.Context, path, table string, n int) error {
	host, err := openHost(path)
	if err != nil {
		return err
	}
	defer host.Close()
	var got int
	if err := host.QueryRowContext(ctx, "SELECT count(*) FROM "+table).Scan(&got); err != nil {
		return err
	}
	if got != n {
		return fmt.Errorf("%s: table %s has %d rows, want %d: replication lost some", path, table, got, n)
	}
	return nil
}

// countFiles counts the files of a replica, and the directories that hold WAL
// segments or the like.
func countFiles(dir string) (metrics, error) {
	m := metrics{}
	err := filepath.WalkDir(dir, func(name string, ent os.DirEntry, err error) error {
		if err == nil && !ent.IsDir() {
			m["files"]++
			m["last"] = 0
		} else if err == nil {
			m["directories"]++
		}
		return err
	})
	delete(m, "last")
	return m, err
}

func fileSize(name string) (int64, error) {
	info, err := os.Stat(name)
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}
