package litestream

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"modernc.org/sqlite"
)

// SQLite's primary result codes, see https://www.sqlite.org/rescode.html.
const (
	sqliteBusy   = 5
	sqliteLocked = 6
)

// sqliteConn is one connection to the database. All that capture and
// checkpoints need of SQLite is here, so that tests can put a model in its
// place. A connection is not safe for concurrent use.
//
// A read or write transaction lives on the background context: a cancelled
// call never ends it (see the pin in checkpoint.go).
type sqliteConn interface {
	// BeginRead opens a read transaction on the newest commit. It waits up to
	// BusyTimeout for a connection that recovers the WAL.
	BeginRead(ctx context.Context) error

	// BeginWrite takes the write lock, trying eagerly until wait has passed.
	BeginWrite(ctx context.Context, wait time.Duration) error

	// InTransaction reports whether a transaction is open.
	InTransaction() (bool, error)

	// End ends the transaction and changes nothing.
	End() error

	// Checkpoint runs the pragma, which needs no transaction on this connection.
	Checkpoint(ctx context.Context, mode string) (checkpointResult, error)

	// EachPage calls fn with every page as the open transaction sees it, in
	// order. The slice is valid during the call alone.
	EachPage(ctx context.Context, fn func(pgno uint32, page []byte) error) error

	Close() error
}

// checkpointResult is the row that PRAGMA wal_checkpoint returns.
type checkpointResult struct {
	Busy       bool // the mode could not be completed
	Log        int  // frames in the WAL; -1 if another checkpoint was running
	Backfilled int  // of these, frames that are in the database file
}

// complete reports whether the whole WAL is in the database file.
func (r checkpointResult) complete() bool { return r.Log >= 0 && r.Log == r.Backfilled }

// isBusy reports whether err is SQLite's word for a lock held elsewhere.
func isBusy(err error) bool {
	var e *sqlite.Error
	if !errors.As(err, &e) {
		return false
	}
	code := e.Code() & 0xff
	return code == sqliteBusy || code == sqliteLocked
}

// openSQL returns a pool that opens connections to an existing database.
func openSQL(path string) (*connPool, error) { return newConnPool(path, "mode=rw") }

// dsn returns the URI of a database file. See https://www.sqlite.org/uri.html.
func dsn(path, query string) string {
	path = filepath.ToSlash(path)
	if !strings.HasPrefix(path, "/") {
		path = "/" + path // a drive letter
	}
	return (&url.URL{Scheme: "file", OmitHost: true, Path: path, RawQuery: query}).String()
}

// conn implements sqliteConn.
type conn struct {
	c rawConn
}

var bg = context.Background()

// openConn opens a connection with the pragmas that the library relies on,
// and reads each back.
func openConn(ctx context.Context, pool *connPool) (_ *conn, err error) {
	raw, err := pool.connect(ctx)
	if err != nil {
		return nil, err
	}
	c := &conn{raw}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Close())
		}
	}()
	// Some of the pragmas read the schema, so that each may find the database
	// locked by a connection that recovers the WAL.
	if err := retryBusy(ctx, BusyTimeout, func() error { return c.setUp(ctx) }); err != nil {
		return nil, err
	}
	return c, nil
}

// setUp may be called again after an error.
func (c *conn) setUp(ctx context.Context) error {
	for _, p := range []struct {
		name string
		want int
	}{
		{"busy_timeout", 0},       // the library retries by itself, much faster
		{"wal_autocheckpoint", 0}, // only managed checkpoints
		{"cache_size", -64},       // KiB: it reads the schema's first page alone
	} {
		if err := c.c.exec(ctx, fmt.Sprintf("PRAGMA %s=%d", p.name, p.want)); err != nil {
			return err
		}
		var got int
		if err := c.c.row(ctx, "PRAGMA "+p.name, &got); err != nil {
			return err
		}
		if got != p.want {
			return fmt.Errorf("pragma %s is %d, want %d", p.name, got, p.want)
		}
	}
	if err := c.persistWAL(); err != nil {
		return err
	}
	var version, mode string
	if err := c.c.row(ctx, "SELECT sqlite_version()", &version); err != nil {
		return err
	}
	if err := checkSQLiteVersion(version); err != nil {
		return err
	}
	// This makes the connection open the WAL.
	if err := c.c.row(bg, "PRAGMA journal_mode", &mode); err != nil {
		return err
	}
	if mode != "wal" {
		return fmt.Errorf("%w: its journal mode is %q", ErrNotWAL, mode)
	}
	return nil
}

// persistWAL keeps the -wal file in place when this connection is the last to
// close, so that the next start resumes its generation. See
// https://www.sqlite.org/c3ref/c_fcntl_begin_atomic_write.html#sqlitefcntlpersistwal.
func (c *conn) persistWAL() error {
	got, err := c.c.c.FileControlPersistWAL("main", 1)
	if err != nil {
		return fmt.Errorf("persist wal: %w", err)
	}
	if got != 1 {
		return fmt.Errorf("persist wal: is %d, want 1", got)
	}
	return nil
}

// minSQLiteVersion is the first release without the race in which a checkpoint
// beside a WAL restart could corrupt the database (present from 3.7.0 on).
const minSQLiteVersion = "3.51.3"

func checkSQLiteVersion(version string) error {
	parse := func(s string) (v [3]int, err error) {
		parts := strings.Split(s, ".")
		if len(parts) < 2 {
			return v, fmt.Errorf("sqlite version %q is not understood", s)
		}
		for i, p := range parts[:min(len(parts), 3)] {
			if v[i], err = strconv.Atoi(p); err != nil {
				return v, fmt.Errorf("sqlite version %q is not understood", s)
			}
		}
		return v, nil
	}
	want, _ := parse(minSQLiteVersion)
	got, err := parse(version)
	if err != nil {
		return err
	}
	if slices.Compare(got[:], want[:]) < 0 {
		return fmt.Errorf("sqlite %s has a bug that corrupts WAL databases; %s or newer is needed: update modernc.org/sqlite", version, minSQLiteVersion)
	}
	return nil
}

// otherSQLiteDriver returns the name under which another copy of SQLite
// registered itself in this process, or "". Two copies do not see each other's
// locks.
func otherSQLiteDriver() string {
	if slices.Contains(sql.Drivers(), "sqlite3") {
		return "sqlite3"
	}
	return ""
}

func (c *conn) exec(query string) error { return c.c.exec(bg, query) }

func (c *conn) BeginRead(ctx context.Context) error {
	err := retryBusy(ctx, BusyTimeout, func() error {
		if err := c.exec("BEGIN"); err != nil {
			return err
		}
		// A deferred transaction takes its snapshot with the first read.
		var n int
		err := c.c.row(bg, "SELECT 1 FROM sqlite_schema LIMIT 1", &n)
		if err != nil && !errors.Is(err, errNoRow) {
			return errors.Join(err, c.End())
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("begin read transaction: %w", err)
	}
	return nil
}

func (c *conn) BeginWrite(ctx context.Context, wait time.Duration) error {
	if err := retryBusy(ctx, wait, func() error { return c.exec("BEGIN IMMEDIATE") }); err != nil {
		return fmt.Errorf("take write lock: %w", err)
	}
	return nil
}

func (c *conn) InTransaction() (bool, error) {
	err := c.exec("BEGIN")
	if err == nil {
		return false, c.End() // it was not
	}
	if strings.Contains(err.Error(), "within a transaction") {
		return true, nil
	}
	return false, err
}

func (c *conn) End() error {
	if err := c.exec("ROLLBACK"); err != nil {
		return fmt.Errorf("end transaction: %w", err)
	}
	return nil
}

func (c *conn) Checkpoint(ctx context.Context, mode string) (r checkpointResult, err error) {
	var busy int
	err = c.c.row(bg, "PRAGMA wal_checkpoint("+mode+")", &busy, &r.Log, &r.Backfilled)
	r.Busy = busy != 0
	if isBusy(err) {
		return checkpointResult{Busy: true, Log: -1, Backfilled: -1}, nil
	}
	if err != nil {
		return r, fmt.Errorf("checkpoint %s: %w", mode, err)
	}
	return r, nil
}

func (c *conn) Close() error { return c.c.c.Close() }

// retryBusy calls fn until it returns something other than SQLite's busy
// error, wait has passed, or ctx is done. SQLite's own busy handler sleeps up
// to 100 ms between tries and starves beside a saturated writer. So does a
// goroutine that sleeps between all tries: where the writers keep every
// processor busy, the runtime wakes it after 10 ms. So tries come in bursts.
func retryBusy(ctx context.Context, wait time.Duration, fn func() error) error {
	const burst, pause = 2 * time.Millisecond, 50 * time.Microsecond
	began := time.Now()
	deadline, rest := began.Add(wait), began.Add(burst)
	for {
		err := fn()
		if !isBusy(err) {
			return err
		}
		if cerr := ctx.Err(); cerr != nil {
			return errors.Join(cerr, err)
		}
		now := time.Now()
		if now.After(deadline) {
			return err
		}
		if now.After(rest) {
			time.Sleep(pause)
			rest = time.Now().Add(burst)
		}
	}
}

// parkedFile is the process's one descriptor of a database file. On Unix,
// closing any descriptor of a file drops all POSIX locks that the process
// holds on it, SQLite's among them; so it is never closed there (I8).
type parkedFile struct {
	f    *os.File
	info fs.FileInfo // identity, compared with os.SameFile
	refs int
	user string // path under which a session has the database open, or ""
}

// parked holds every database file that the process ever opened through the
// library. The map's reference also keeps the garbage collector from closing
// a descriptor.
var parked struct {
	sync.Mutex
	files []*parkedFile
}

// closeDropsLocks tells whether closing a descriptor drops the process's locks.
const closeDropsLocks = runtime.GOOS != "windows"

// parkDatabase returns the descriptor of the file at path, opening it if the
// process has none yet.
func parkDatabase(path string) (*parkedFile, error) {
	parked.Lock()
	defer parked.Unlock()
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if p := findParked(info); p != nil {
		p.refs++
		return p, nil
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("open %s: not a regular file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	p := &parkedFile{f: f, refs: 1}
	parked.files = append(parked.files, p)
	// The path may name another file by now: trust the descriptor. Should it
	// fail, the descriptor stays parked all the same.
	if p.info, err = f.Stat(); err != nil {
		return nil, err
	}
	return p, nil
}

func findParked(info fs.FileInfo) *parkedFile {
	for _, p := range parked.files {
		if p.info != nil && os.SameFile(p.info, info) {
			return p
		}
	}
	return nil
}

// use makes path the one under which the database is open. Under another name
// of the file, a hard link, SQLite would have another WAL.
func (p *parkedFile) use(path string) error {
	parked.Lock()
	defer parked.Unlock()
	if p.user != "" && p.user != path {
		return fmt.Errorf("%w: %s and %s are links to one file, and each would have a WAL of its own; use one path alone", ErrDatabaseLocked, path, p.user)
	}
	p.user = path
	return nil
}

// disuse ends use.
func (p *parkedFile) disuse(path string) {
	parked.Lock()
	defer parked.Unlock()
	if p.user == path {
		p.user = ""
	}
}

// release gives the descriptor back. Only where that is harmless is it closed.
func (p *parkedFile) release() error {
	parked.Lock()
	defer parked.Unlock()
	p.refs--
	if closeDropsLocks || p.refs > 0 {
		return nil
	}
	parked.files = slices.DeleteFunc(parked.files, func(q *parkedFile) bool { return q == p })
	return p.f.Close()
}

// databaseHeader is what the library reads of the first 100 bytes of a
// database file, see https://www.sqlite.org/fileformat2.html#the_database_header.
type databaseHeader struct {
	pageSize int
	wal      bool // the file format versions say WAL mode
}

const (
	databaseHeaderSize  = 100
	databaseMagic       = "SQLite format 3\x00"
	databasePagesOffset = 28 // of the size in pages
)

// readDatabaseHeader returns io.EOF for an empty file, which is a database
// that the host is about to create.
func readDatabaseHeader(r io.ReaderAt) (h databaseHeader, err error) {
	var b [databaseHeaderSize]byte
	n, err := r.ReadAt(b[:], 0)
	if n == 0 || err != nil && err != io.EOF {
		return h, err
	}
	return parseDatabaseHeader(b[:n])
}

func parseDatabaseHeader(b []byte) (h databaseHeader, err error) {
	if len(b) < databaseHeaderSize || string(b[:len(databaseMagic)]) != databaseMagic {
		return h, errors.New("not a sqlite database")
	}
	h.pageSize = int(binary.BigEndian.Uint16(b[16:]))
	if h.pageSize == 1 {
		h.pageSize = maxPageSize
	}
	if !isPageSize(int64(h.pageSize)) {
		return h, fmt.Errorf("database header has page size %d", h.pageSize)
	}
	h.wal = b[18] == 2 && b[19] == 2
	return h, nil
}

// SQLDB returns the library's own pool of connections, nil while there is no
// database file. It is closed by Close. Hosts open their own: a statement here
// shares nothing with theirs.
func (db *DB) SQLDB() *sql.DB {
	if pool := db.pool.Load(); pool != nil {
		return pool.sqlDB()
	}
	return nil
}

// checkIntegrity runs quick_check or integrity_check on a database file that
// nobody else has open and that has no WAL. It leaves no file beside it.
func checkIntegrity(ctx context.Context, path string, check IntegrityCheck) (err error) {
	pragma := "PRAGMA quick_check(1)"
	if check == IntegrityCheckFull {
		pragma = "PRAGMA integrity_check(1)"
	}
	if path, err = filepath.Abs(path); err != nil {
		return err
	}
	pool, err := newConnPool(path, "mode=ro&immutable=1")
	if err != nil {
		return err
	}
	raw, err := pool.connect(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, raw.c.Close()) }()
	var result string
	if err := raw.row(ctx, pragma, &result); err != nil {
		return fmt.Errorf("%s: %w", pragma, err)
	}
	if result != "ok" {
		return fmt.Errorf("%s: %s", pragma, result)
	}
	return nil
}

// EachPage reads through the sqlite_dbpage table, see
// https://www.sqlite.org/dbpage.html.
func (c *conn) EachPage(ctx context.Context, fn func(pgno uint32, page []byte) error) error {
	return c.c.each(ctx, func(row []driver.Value) error {
		pgno, ok := row[0].(int64)
		page, ok2 := row[1].([]byte)
		if !ok || !ok2 {
			return fmt.Errorf("read pages: row of %T and %T", row[0], row[1])
		}
		return fn(uint32(pgno), page)
	}, "SELECT pgno, data FROM sqlite_dbpage")
}
