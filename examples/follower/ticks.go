package main

import (
	"context"
	"database/sql"
	"fmt"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	_ "modernc.org/sqlite" // the same driver as the library's
)

// openTicks opens the application's own connections to the database. Those of
// a follower must not write: its file belongs to the library.
func openTicks(path string, queryOnly bool) (*sql.DB, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	p := filepath.ToSlash(abs)
	if !strings.HasPrefix(p, "/") {
		p = "/" + p // a drive letter
	}
	pragmas := url.Values{"_pragma": {"busy_timeout(5000)", "query_only(1)"}}
	if !queryOnly {
		pragmas["_pragma"] = []string{"busy_timeout(5000)", "journal_mode(WAL)", "synchronous(NORMAL)"}
	}
	return sql.Open("sqlite", (&url.URL{Scheme: "file", Path: p, RawQuery: pragmas.Encode()}).String())
}

func createTicks(ctx context.Context, db *sql.DB) error {
	_, err := db.ExecContext(ctx, `CREATE TABLE IF NOT EXISTS ticks (
		n  INTEGER PRIMARY KEY, -- 1, 2, 3 and so on
		at INTEGER NOT NULL     -- microseconds since 1970
	) STRICT`)
	return err
}

// addTick writes the next row.
func addTick(ctx context.Context, db *sql.DB) error {
	_, err := db.ExecContext(ctx, "INSERT INTO ticks (at) VALUES (?)", time.Now().UnixMicro())
	return err
}

// lastTick returns the newest row and when it was written. It is an error if
// one before it is missing.
func lastTick(ctx context.Context, db *sql.DB) (n int, at time.Time, err error) {
	var count int
	var micro int64
	row := db.QueryRowContext(ctx, "SELECT count(*), coalesce(max(n), 0), coalesce(max(at), 0) FROM ticks")
	if err := row.Scan(&count, &n, &micro); err != nil {
		return 0, time.Time{}, err
	}
	if count != n {
		return 0, time.Time{}, fmt.Errorf("%d rows of %d are missing", n-count, n)
	}
	return n, time.UnixMicro(micro), nil
}
