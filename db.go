package litestream

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"example.com/litestream/internal/atomicfile"
	"example.com/litestream/internal/fsys"
)

// Defaults of a DB.
const (
	DefaultMonitorDelayInterval = 10 * time.Millisecond
	DefaultCheckpointInterval   = 1 * time.Minute
	DefaultMinCheckpointPageN   = 1000
	DefaultMaxCheckpointPageN   = 10000
	DefaultShadowRetentionN     = 32
)

// closeTimeout bounds Close.
const closeTimeout = 30 * time.Second

// DB streams one SQLite database to its replicas. Construct it with [NewDB],
// set the exported fields, append to Replicas, and call Open; do not change
// the fields afterwards. All methods are safe for concurrent use.
type DB struct {
	// StreamClient makes the DB a follower: a live copy of the database that
	// the client streams from, for reading alone. It has no Replicas. See
	// "Followers" in the package's documentation.
	StreamClient StreamClient

	// MinCheckpointPageN is how many pages, at least 1, the WAL holds before a
	// checkpoint takes the write lock, for a few milliseconds, to let the WAL
	// restart. Checkpoints that take no lock come before that. It comes later for
	// writers that reach this within 30 ms: at what they add in that time, and at
	// a quarter of MaxCheckpointPageN at the latest.
	MinCheckpointPageN int

	// MaxCheckpointPageN is how many pages the WAL holds before checkpoints are
	// repeated, for at most BusyTimeout, until it restarts. 0 forces none: then
	// the WAL grows for as long as readers overlap.
	MaxCheckpointPageN int

	// ShadowRetentionN is how many captured WAL indexes are kept in the meta
	// directory, beyond those that a replica still needs.
	ShadowRetentionN int

	// MonitorDelayInterval is the time from the notice of a change to its
	// capture, so that many commits become one segment.
	MonitorDelayInterval time.Duration

	// CheckpointInterval is the longest time that a change stays in the WAL
	// alone. 0 leaves it there until the WAL has grown.
	CheckpointInterval time.Duration

	// Replicas receive the changes. Their names must differ, and so must the
	// directories of file replicas.
	Replicas []*Replica

	// Logger receives what a person must know. NewDB sets one that writes to
	// LogWriter.
	Logger *log.Logger

	path string // as given
	real string // absolute, symbolic links resolved
	meta metaDir
	fs   fsys.FS

	notify chan struct{}
	status statusPointer // stored only after the bytes are readable
	count  dbCounters
	pool   atomic.Pointer[connPool]
	shadow *shadowWAL
	errs   errorLog

	mu struct {
		contextMutex // the writer role; held across local I/O, never across a client call
		open         bool
		session      *session  // nil until the database exists
		capturer     *capturer // survives a session
		staleWAL     *staleWAL // nil if the WAL belongs to the database
		seen         bool      // the database existed since Open
	}

	life struct {
		sync.Mutex // Open and Shutdown, whole
		lock       *managerLock
		cancel     context.CancelFunc // ends the run loop
		done       chan struct{}      // closed when the run loop has ended
	}

	follower atomic.Pointer[follower] // nil unless the DB is an open follower

	streams streamSet // of which this DB is the upstream
	backlog int64     // see minStreamBacklog

	lineage atomic.Pointer[lineage] // set by Open

	iterators struct {
		sync.Mutex // leaf; guards:
		set        map[*FileWALSegmentIterator]struct{}
	}
}

// dbStatus is what accessors read without a lock. It is immutable.
type dbStatus struct {
	open       bool
	pos        Pos
	pageSize   int
	walSize    int64     // bytes in use
	capturedAt time.Time // of the last capture that found something
}

// statusPointer points to the zero status until one is stored.
type statusPointer struct{ atomic.Pointer[dbStatus] }

func (p *statusPointer) Load() *dbStatus {
	if st := p.Pointer.Load(); st != nil {
		return st
	}
	return &dbStatus{}
}

// NewDB returns a DB for the database file at path, which need not exist yet,
// with default settings and no replicas.
func NewDB(path string) *DB {
	db := &DB{
		MinCheckpointPageN:   DefaultMinCheckpointPageN,
		MaxCheckpointPageN:   DefaultMaxCheckpointPageN,
		ShadowRetentionN:     DefaultShadowRetentionN,
		MonitorDelayInterval: DefaultMonitorDelayInterval,
		CheckpointInterval:   DefaultCheckpointInterval,
		Logger:               newLogger("litestream: " + filepath.Base(path) + ": "),

		path:   path,
		fs:     fsys.OS,
		notify: make(chan struct{}, 1),

		backlog: minStreamBacklog,
	}
	db.mu.contextMutex = newContextMutex()
	db.resolve()
	db.errs.logf = db.logf
	return db
}

// resolve finds the file behind symbolic links, as SQLite does: its WAL lies
// beside that file. What does not exist yet is taken literally.
func (db *DB) resolve() {
	real := resolvePath(db.path)
	if real == db.real {
		return // others may be reading it
	}
	db.real = real
	db.meta = metaDir(db.real + MetaDirSuffix)
	db.shadow = newShadowWAL(db.fs, db.meta)
}

func resolvePath(path string) string {
	abs, err := filepath.Abs(path)
	if err != nil {
		abs = path
	}
	const maxLinks = 32 // in a row; links may form a circle
	for range maxLinks {
		if p, err := filepath.EvalSymlinks(abs); err == nil {
			return p
		}
		// A dangling link is where the host will create the file.
		target, err := os.Readlink(abs)
		if err != nil {
			break
		}
		if !filepath.IsAbs(target) {
			target = filepath.Join(resolvePath(filepath.Dir(abs)), target)
		}
		abs = target
	}
	if dir := filepath.Dir(abs); dir != abs {
		return filepath.Join(resolvePath(dir), filepath.Base(abs))
	}
	return abs
}

// Path returns the database's path as given to NewDB.
func (db *DB) Path() string { return db.path }

// WALPath returns the path of the database's WAL.
func (db *DB) WALPath() string { return db.real + "-wal" }

// SHMPath returns the path of the database's -shm file. Never open it in a
// process that uses the database: closing it drops SQLite's locks.
func (db *DB) SHMPath() string { return db.real + "-shm" }

// MetaPath returns the directory that holds the library's own files.
func (db *DB) MetaPath() string { return string(db.meta) }

// GenerationNamePath returns the file that names the current generation.
func (db *DB) GenerationNamePath() string { return db.meta.generationName() }

// PositionPath returns the file into which the position is written for other
// processes to read: at once after a pause, within two seconds of the last
// change, every ten seconds while changes go on, and by Close.
func (db *DB) PositionPath() string { return db.meta.position() }

// GenerationPath returns the directory of a generation in the meta directory.
func (db *DB) GenerationPath(generation string) string { return db.meta.generation(generation) }

// ShadowWALDir returns the directory of a generation's captured WAL.
func (db *DB) ShadowWALDir(generation string) string { return db.meta.walDir(generation) }

// Replica returns the replica of that name, or nil.
func (db *DB) Replica(name string) *Replica {
	for _, r := range db.Replicas {
		if r != nil && r.Name() == name {
			return r
		}
	}
	return nil
}

// Pos returns the position up to which the database has been captured. It is
// zero before the first capture.
func (db *DB) Pos() Pos { return db.status.Load().pos }

// PageSize returns the database's page size in bytes, 0 before the first
// capture.
func (db *DB) PageSize() int { return db.status.Load().pageSize }

// CurrentGeneration returns the name in the generation file, "" if there is
// none.
func (db *DB) CurrentGeneration() (string, error) {
	if db.shadow == nil { // NewDB did not make it
		return "", nil
	}
	return db.shadow.readGeneration()
}

// NotifyCh returns a channel that wakes the capture before it notices a change
// by itself. Send without blocking: a wake-up that is already due is enough.
func (db *DB) NotifyCh() chan<- struct{} { return db.notify }

// UpdatedAt returns the later modification time of the database and its WAL.
// The error matches fs.ErrNotExist if there is no database.
func (db *DB) UpdatedAt() (time.Time, error) {
	info, err := os.Stat(db.real)
	if err != nil {
		return time.Time{}, err
	}
	t := info.ModTime()
	if info, err := os.Stat(db.WALPath()); err == nil && info.ModTime().After(t) {
		t = info.ModTime()
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return time.Time{}, err
	}
	return t, nil
}

// Open takes the manager lock and starts streaming. A database that exists is
// captured before Open returns; one that does not may appear later. Errors in
// reading it, such as ErrNotWAL, are logged and tried again: see Sync and
// Stats. Open itself fails for a setting that makes no sense, if the DB is open
// already, and with an error that matches ErrDatabaseLocked if another DB
// manages the database.
func (db *DB) Open() (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("open %s: %w", db.path, err)
		}
	}()
	db.life.Lock()
	defer db.life.Unlock()
	if db.life.lock != nil {
		return errors.New("already open; close it before opening it again")
	}
	if err := db.validate(); err != nil {
		return err
	}
	db.resolve()
	if err := db.checkReplicaDirs(); err != nil {
		return err
	}
	opt := metaPath
	opt.Durable = true // the lineage must not go with the directory
	if err := atomicfile.MkdirAll(db.fs, string(db.meta), opt); err != nil {
		return err
	}
	lock, err := lockManager(db.meta.lock())
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, lock.unlock())
		}
	}()
	if err := atomicfile.Sweep(db.fs, string(db.meta)); err != nil {
		return err
	}
	if name := otherSQLiteDriver(); name != "" {
		db.logf("warning: this process registered the SQL driver %q, another copy of SQLite: a database opened with it here does not see the locks of the library; use modernc.org/sqlite", name)
	}
	ctx, cancel := context.WithCancel(context.Background())
	if err := db.start(ctx); err != nil {
		cancel()
		return err
	}
	db.life.lock, db.life.cancel = lock, cancel
	return nil
}

// start starts the goroutines. db.life is locked.
func (db *DB) start(ctx context.Context) error {
	if db.StreamClient != nil {
		f, done, err := startFollower(ctx, db)
		if err != nil {
			return err
		}
		db.follower.Store(f)
		db.life.done = done
		return nil
	}
	// As a follower it would go on with another database's history.
	if err := removeIfExists(db.fs, db.meta.follower()); err != nil {
		return err
	}
	db.lineage.Store(&lineage{fs: db.fs, name: db.meta.lineage()})
	for _, r := range db.Replicas {
		r.dbOpened()
	}
	db.mu.Lock()
	db.mu.open = true
	db.mu.capturer = &capturer{fs: db.fs, walPath: db.WALPath(), shadow: db.shadow}
	db.publish(captured{})
	db.mu.Unlock()

	done := make(chan struct{})
	db.life.done = done
	loop := newMonitor(db)
	loop.step(ctx)
	go func() {
		defer close(done)
		loop.run(ctx)
	}()
	for _, r := range db.Replicas {
		if r.MonitorEnabled {
			r.Start(ctx)
		}
	}
	return nil
}

// checkPath rejects what SQLite would not open as a file of that name.
func checkPath(path string) error {
	switch {
	case path == "":
		return errors.New("path is empty")
	case path == ":memory:", strings.HasPrefix(path, "file:"):
		return fmt.Errorf("path %q is no file's: give the path alone, not a data source name", path)
	}
	return nil
}

func (db *DB) validate() error {
	if err := checkPath(db.path); err != nil {
		return err
	}
	if db.StreamClient != nil && isNil(db.StreamClient) {
		return fmt.Errorf("StreamClient is a nil %T; leave it unset in a primary", db.StreamClient)
	}
	if db.StreamClient != nil && len(db.Replicas) > 0 {
		return errors.New("a follower, one with a StreamClient, has no Replicas: give them to its upstream")
	}
	if db.MinCheckpointPageN < 1 {
		return fmt.Errorf("MinCheckpointPageN is %d; it must be at least 1", db.MinCheckpointPageN)
	}
	if db.MaxCheckpointPageN < 0 {
		return fmt.Errorf("MaxCheckpointPageN is %d; it must not be negative", db.MaxCheckpointPageN)
	}
	if db.ShadowRetentionN < 1 {
		return fmt.Errorf("ShadowRetentionN is %d; it must be at least 1", db.ShadowRetentionN)
	}
	if err := cmp.Or(
		checkInterval("MonitorDelayInterval", db.MonitorDelayInterval),
		checkInterval("CheckpointInterval", db.CheckpointInterval),
	); err != nil {
		return err
	}
	names := make(map[string]bool)
	for _, r := range db.Replicas {
		if r == nil || r.client == nil {
			return errors.New("a replica is nil or has no client")
		}
		if r.db != db {
			return fmt.Errorf("replica %q belongs to another database", r.Name())
		}
		if names[r.Name()] {
			return fmt.Errorf("replica name %q is used twice", r.Name())
		}
		names[r.Name()] = true
		if err := r.validate(); err != nil {
			return fmt.Errorf("replica %q: %w", r.Name(), err)
		}
	}
	return nil
}

// Close is Shutdown with a limit of 30 s.
func (db *DB) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	return db.Shutdown(ctx)
}

// Shutdown captures what is committed, brings it to every replica, and ends
// everything that Open started. When ctx ends first, the rest of the upload is
// left for the next start and the error says so. Close the host's own
// connections before: the last connection to close removes the WAL, unless it
// is the library's, and without its WAL a database begins a new generation.
//
// A DB that is not open is left alone. After Shutdown it may be opened again.
func (db *DB) Shutdown(ctx context.Context) error {
	db.life.Lock()
	defer db.life.Unlock()
	if db.life.lock == nil {
		return nil
	}
	db.life.cancel()
	<-db.life.done
	var err error
	if f := db.follower.Load(); f != nil {
		err = db.shutFollower(f)
	} else {
		err = db.shutPrimary(ctx)
	}
	err = errors.Join(err, db.life.lock.unlock())
	db.life.lock, db.life.cancel, db.life.done = nil, nil, nil
	if err != nil {
		return fmt.Errorf("close %s: %w", db.path, err)
	}
	return nil
}

func (db *DB) shutFollower(f *follower) error {
	err := f.stop()
	db.setClosed()
	f.wakeWaiters()
	db.follower.Store(nil)
	return err
}

// setClosed lets accessors and those who wait see that the DB is closed.
func (db *DB) setClosed() {
	closed := *db.status.Load()
	closed.open = false
	db.status.Store(&closed)
}

func (db *DB) shutPrimary(ctx context.Context) error {
	for _, r := range db.Replicas {
		r.Stop()
	}
	errs := []error{
		db.sync(context.Background(), tierNone), // local, so not worth giving up
		eachReplica(db.Replicas, func(r *Replica) error { return r.Sync(ctx) }),
	}
	db.endIterators(ErrDBClosed)

	db.mu.Lock()
	if err := db.writePosition(); err != nil {
		errs = append(errs, err)
	}
	db.mu.open = false
	db.setClosed()
	for _, r := range db.Replicas {
		r.dbClosed()
	}
	db.mu.Unlock()

	db.streams.end()

	db.mu.Lock()
	errs = append(errs, db.endSession(), db.setStaleWAL(nil))
	db.mu.capturer, db.mu.seen = nil, false
	db.mu.Unlock()
	return errors.Join(errs...)
}

// endSession closes the session, if there is one. DB.mu is held.
func (db *DB) endSession() error {
	s := db.mu.session
	if s == nil {
		return nil
	}
	db.mu.session = nil
	db.pool.Store(nil)
	return s.close()
}

// WithFile calls fn with the parked descriptor of the database file, opened
// for reading. fn must use ReadAt alone, and must not close it. The error
// matches fs.ErrNotExist if there is no database yet.
func (db *DB) WithFile(fn func(f *os.File) error) error {
	if fn == nil {
		return fmt.Errorf("with file %s: no function to call", db.path)
	}
	file, err := parkDatabase(db.real)
	if err != nil {
		return fmt.Errorf("with file %s: %w", db.path, err)
	}
	return errors.Join(fn(file.f), file.release())
}

// WALSegmentReader returns the captured segment that begins at pos,
// LZ4-compressed. The error matches fs.ErrNotExist if there is none.
func (db *DB) WALSegmentReader(ctx context.Context, pos Pos) (io.ReadCloser, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if db.shadow == nil {
		return nil, fmt.Errorf("read captured segment %s: %w", pos, errNotOpen)
	}
	if !IsGenerationName(pos.Generation) || pos.Index < 0 || pos.Offset < 0 {
		return nil, fmt.Errorf("read captured segment %s: not a position: %w", pos, fs.ErrNotExist)
	}
	rc, err := db.shadow.open(pos)
	if err != nil {
		return nil, fmt.Errorf("read captured segment %s: %w", pos, err)
	}
	return rc, nil
}

// WALReader returns the captured WAL of one index from its header on,
// uncompressed. The error matches fs.ErrNotExist if there is none, and
// ErrGenerationChanged if the generation is not the current one.
func (db *DB) WALReader(ctx context.Context, generation string, index int) (io.ReadCloser, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if db.shadow == nil {
		return nil, fmt.Errorf("read captured wal: %w", errNotOpen)
	}
	segments, err := db.shadow.segments(generation, index)
	if err != nil {
		return nil, fmt.Errorf("read captured wal: %w", err)
	}
	return newFrameReader(joinSegments(db.shadow.sources(Pos{Generation: generation, Index: index}, segments))), nil
}

// writePosition writes the position for other processes to read.
func (db *DB) writePosition() error {
	pos := db.Pos()
	if pos.IsZero() {
		return nil
	}
	return atomicfile.WriteBytes(db.fs, db.meta.position(), metaFile, []byte(pos.String()+"\n"))
}

func (db *DB) logf(format string, a ...any) {
	if db.Logger != nil {
		db.Logger.Printf(format, a...)
	}
}

// logPrefix is what a replica's log lines begin with.
func logPrefix(path, name string) string {
	return "litestream: " + filepath.Base(path) + ": " + strings.TrimSpace(name) + ": "
}
