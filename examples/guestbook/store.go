package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	_ "modernc.org/sqlite" // the same driver as the library's: see README.md
)

// entry is one line in the guestbook.
type entry struct {
	ID      int64
	Name    string
	Message string
	Created time.Time // to the millisecond
}

// store keeps the entries. It is safe for concurrent use.
type store struct {
	db *sql.DB
}

// openStore opens the database with the application's own connections.
func openStore(ctx context.Context, path string) (_ *store, err error) {
	dsn, err := dataSourceName(path)
	if err != nil {
		return nil, err
	}
	db, err := sql.Open("sqlite", dsn)
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	db.SetMaxOpenConns(4)
	_, err = db.ExecContext(ctx, `CREATE TABLE IF NOT EXISTS entries (
		id      INTEGER PRIMARY KEY,
		name    TEXT NOT NULL,
		message TEXT NOT NULL,
		created INTEGER NOT NULL -- milliseconds since 1970, UTC
	) STRICT`)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("create schema: %w", err), db.Close())
	}
	return &store{db: db}, nil
}

// dataSourceName returns the driver's name for the database: a URI, so that a
// path may hold any character.
func dataSourceName(path string) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("open store: %w", err)
	}
	p := filepath.ToSlash(abs)
	if !strings.HasPrefix(p, "/") {
		p = "/" + p // a drive letter
	}
	pragmas := url.Values{"_pragma": {"busy_timeout(5000)", "journal_mode(WAL)", "synchronous(NORMAL)"}}
	return (&url.URL{Scheme: "file", Path: p, RawQuery: pragmas.Encode()}).String(), nil
}

func (s *store) close() error {
	if err := s.db.Close(); err != nil {
		return fmt.Errorf("close store: %w", err)
	}
	return nil
}

// add stores a new entry.
func (s *store) add(ctx context.Context, name, message string, created time.Time) error {
	_, err := s.db.ExecContext(ctx, `INSERT INTO entries (name, message, created) VALUES (?, ?, ?)`,
		name, message, created.UnixMilli())
	if err != nil {
		return fmt.Errorf("add entry: %w", err)
	}
	return nil
}

// before returns at most n entries with an ID below id, newest first, and
// whether there are older ones. An id of 0 means the newest.
func (s *store) before(ctx context.Context, id int64, n int) (_ []entry, more bool, err error) {
	if id == 0 {
		id = math.MaxInt64
	}
	rows, err := s.db.QueryContext(ctx,
		`SELECT id, name, message, created FROM entries WHERE id < ? ORDER BY id DESC LIMIT ?`, id, n+1)
	if err != nil {
		return nil, false, fmt.Errorf("list entries: %w", err)
	}
	defer rows.Close()

	var entries []entry
	for rows.Next() {
		var e entry
		var created int64
		if err := rows.Scan(&e.ID, &e.Name, &e.Message, &created); err != nil {
			return nil, false, fmt.Errorf("list entries: %w", err)
		}
		e.Created = time.UnixMilli(created).UTC()
		entries = append(entries, e)
	}
	if err := rows.Err(); err != nil {
		return nil, false, fmt.Errorf("list entries: %w", err)
	}
	if len(entries) > n {
		return entries[:n], true, nil
	}
	return entries, false, nil
}

// count returns the number of entries.
func (s *store) count(ctx context.Context) (n int, err error) {
	if err := s.db.QueryRowContext(ctx, `SELECT count(*) FROM entries`).Scan(&n); err != nil {
		return 0, fmt.Errorf("count entries: %w", err)
	}
	return n, nil
}

// check runs SQLite's integrity check over the whole database.
func (s *store) check(ctx context.Context) error {
	var result string
	if err := s.db.QueryRowContext(ctx, `PRAGMA integrity_check`).Scan(&result); err != nil {
		return fmt.Errorf("integrity check: %w", err)
	}
	if result != "ok" {
		return fmt.Errorf("integrity check: %s", result)
	}
	return nil
}
