package litestream

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
)

// pageConn is the connection through which a follower changes pages of its
// database, see https://www.sqlite.org/dbpage.html. It is not safe for
// concurrent use.
type pageConn struct {
	conn
	pool     *connPool
	pageSize int
	version  int // PRAGMA data_version: it changes when another connection has committed
}

// openPageConn opens a database for a follower, which may be an empty file. With
// a page size of 0 it is taken as it is.
func openPageConn(ctx context.Context, path string, pageSize int) (_ *pageConn, err error) {
	pool, err := openSQL(path)
	if err != nil {
		return nil, err
	}
	raw, err := pool.connect(ctx)
	if err != nil {
		return nil, err
	}
	c := &pageConn{conn: conn{raw}, pool: pool}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Close())
		}
	}()
	// A page size is for an empty file alone; others keep theirs, and 0 is
	// ignored.
	if err := retryBusy(ctx, BusyTimeout, func() error {
		for _, pragma := range []string{"busy_timeout=0", "synchronous=NORMAL", fmt.Sprintf("page_size=%d", pageSize), "journal_mode=WAL"} {
			if err := c.exec("PRAGMA " + pragma); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		return nil, err
	}
	var mode, version string
	for query, dest := range map[string]any{
		"PRAGMA journal_mode":     &mode,
		"PRAGMA page_size":        &c.pageSize,
		"SELECT sqlite_version()": &version,
	} {
		if err := c.row(ctx, query, dest); err != nil {
			return nil, err
		}
	}
	if mode != "wal" {
		return nil, fmt.Errorf("%w: its journal mode is %q", ErrNotWAL, mode)
	}
	if pageSize != 0 && c.pageSize != pageSize {
		return nil, fmt.Errorf("%w: %d and %d bytes: close all connections, remove the database with its -wal and -shm, and open the follower again", ErrPageSizeMismatch, pageSize, c.pageSize)
	}
	if err := checkSQLiteVersion(version); err != nil {
		return nil, err
	}
	if err := c.persistWAL(); err != nil {
		return nil, err
	}
	c.version, err = c.dataVersion(ctx)
	return c, err
}

func (c *pageConn) row(ctx context.Context, query string, dest any) error {
	if err := c.c.row(ctx, query, dest); err != nil {
		return fmt.Errorf("%s: %w", query, err)
	}
	return nil
}

func (c *pageConn) dataVersion(ctx context.Context) (version int, err error) {
	return version, c.row(ctx, "PRAGMA data_version", &version)
}

// Modified reports whether another connection has committed since the last
// call, or since the opening. What it says holds for as long as the transaction
// that it is called in.
func (c *pageConn) Modified(ctx context.Context) (bool, error) {
	version, err := c.dataVersion(ctx)
	if err != nil {
		return false, err
	}
	changed := version != c.version
	c.version = version
	return changed, nil
}

// PageCount returns the size of the database in pages.
func (c *pageConn) PageCount(ctx context.Context) (n uint32, err error) {
	var count int
	err = c.row(ctx, "PRAGMA page_count", &count)
	return uint32(count), err
}

// ReadPage calls fn with a page. The slice is valid during the call alone.
func (c *pageConn) ReadPage(ctx context.Context, pgno uint32, fn func(page []byte)) error {
	return c.c.each(ctx, func(row []driver.Value) error {
		page, ok := row[0].([]byte)
		if !ok {
			return fmt.Errorf("page is a %T", row[0])
		}
		fn(page)
		return nil
	}, "SELECT data FROM sqlite_dbpage WHERE pgno = ?", int64(pgno))
}

// PageWriter returns a function that writes pages within the open transaction.
// Page 1 comes last: it holds the schema's version, after whose change the next
// statement reads the schema.
func (c *pageConn) PageWriter(ctx context.Context) (write func(pgno uint32, page []byte) error, end func() error, err error) {
	stmt, err := c.c.c.PrepareContext(ctx, "INSERT INTO sqlite_dbpage(pgno, data) VALUES(?, ?)")
	if err != nil {
		return nil, nil, err
	}
	run, ok := stmt.(driver.StmtExecContext)
	if !ok {
		return nil, nil, errors.Join(fmt.Errorf("unexpected statement %T", stmt), stmt.Close())
	}
	return func(pgno uint32, page []byte) error {
		if _, err := run.ExecContext(bg, namedValues([]any{int64(pgno), page})); err != nil {
			return fmt.Errorf("write page %d: %w", pgno, err)
		}
		return nil
	}, stmt.Close, nil
}

// Truncate cuts the database to n pages when the transaction commits.
func (c *pageConn) Truncate(n uint32) error {
	if err := c.c.exec(bg, "INSERT INTO sqlite_dbpage(pgno, data) VALUES(?, NULL)", int64(n)+1); err != nil {
		return fmt.Errorf("truncate to %d pages: %w", n, err)
	}
	return nil
}

// Commit ends the transaction.
func (c *pageConn) Commit() error { return c.exec("COMMIT") }

// Close closes the connection.
func (c *pageConn) Close() error { return errors.Join(c.conn.Close(), c.pool.Close()) }
