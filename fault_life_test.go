package litestream_test

import (
	"database/sql"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"example.com/litestream"
	"example.com/litestream/fileclient"
	"example.com/litestream/internal/faultfs"
	"example.com/litestream/internal/fsys"
	"example.com/litestream/replicatest"
)

// A life is what one database goes through, from its first commit to its
// restore, on a file system and with a replica that may fail. It makes the same
// operations each time, so that each can be made to fail once.
type life struct {
	dir    string
	crash  *faultfs.CrashFS                   // below fs
	fs     *faultfs.FS                        // of the meta directory, the replica and the restore
	client *replicatest.FaultClient           // in front of files
	files  struct{ litestream.ReplicaClient } // of the present process
	host   *sql.DB
	db     *litestream.DB
	log    logBuffer

	step          string
	rows          int // that the host committed
	confirmed     int // of these, by a SyncAndWait or Close that returned nil
	confirmations int
	said          []error // all that the library reported
	broken        []error // what no fault excuses
}

// lifeTemplate is the database that every life begins with. Small pages make
// small operations.
func lifeTemplate(t testing.TB) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "template")
	host := openHost(t, path, "page_size(512)")
	mustExec(t, host, `CREATE TABLE t (n INTEGER PRIMARY KEY, s TEXT)`)
	if err := host.Close(); err != nil { // checkpoints, and removes the -wal
		t.Fatal(err)
	}
	return readFile(t, path)
}

// newLife begins a life in a directory, of which nothing else is left. The
// database keeps its inode, and so its parked descriptor.
func newLife(dir string, template []byte) (*life, error) {
	ents, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, ent := range ents {
		if ent.Name() != "db" {
			if err := os.RemoveAll(filepath.Join(dir, ent.Name())); err != nil {
				return nil, err
			}
		}
	}
	l := &life{dir: dir, crash: faultfs.NewCrash(fsys.OS, dir)}
	l.fs = faultfs.New(l.crash)
	l.client = replicatest.NewFaultClient(&l.files)
	if err := os.WriteFile(l.path("db"), template, 0o600); err != nil {
		return nil, err
	}
	return l, l.openHost()
}

func (l *life) path(name string) string { return filepath.Join(l.dir, name) }

func (l *life) openHost() (err error) {
	l.host, err = sql.Open("sqlite", "file:"+l.path("db")+"?_pragma=busy_timeout(5000)&_pragma=journal_mode(WAL)&_pragma=synchronous(NORMAL)")
	if err != nil {
		return err
	}
	l.host.SetMaxOpenConns(1)
	return l.host.Ping()
}

// withFS makes what fn constructs work on a file system. No other test may run
// meanwhile.
func withFS(fsy fsys.FS, fn func()) {
	old := fsys.OS
	fsys.OS = fsy
	defer func() { fsys.OS = old }()
	fn()
}

// open opens the database as a new process does. Nothing happens by itself.
func (l *life) open() error {
	withFS(l.fs, func() {
		l.files.ReplicaClient = fileclient.NewFileReplicaClient(l.path("replica"))
		l.db = litestream.NewDB(l.path("db"))
	})
	l.db.Logger = l.log.logger()
	l.db.MonitorDelayInterval = time.Hour // no event leads to a capture
	l.db.CheckpointInterval = 0
	l.db.ShadowRetentionN = 1
	r := litestream.NewReplica(l.db, "file", l.client)
	r.Logger = l.db.Logger
	r.MonitorEnabled = false
	r.Retention = 1 // ns: the newest snapshot but one, if any, is the oldest that is needed
	l.db.Replicas = append(l.db.Replicas, r)
	err := l.db.Open()
	if err != nil {
		l.note(err)
		err = l.db.Open() // as whoever started it does
	}
	if err == nil {
		l.db.StopMonitor()
	}
	return err
}

// openWithoutWAL opens after the host was the last to close, which removes the
// WAL: a new generation begins.
func (l *life) openWithoutWAL() error {
	if err := errors.Join(l.host.Close(), l.openHost()); err != nil {
		l.broken = append(l.broken, err)
	}
	l.commit(10)
	return l.open()
}

// commit is the host's: the library must not make it fail.
func (l *life) commit(size int) {
	l.rows++
	if _, err := l.host.Exec(`INSERT INTO t VALUES (?, ?)`, l.rows, lifeRow(l.rows, size)); err != nil {
		l.broken = append(l.broken, fmt.Errorf("the host's commit %d: %w", l.rows, err))
	}
}

func lifeRow(n, size int) string { return strings.Repeat(fmt.Sprint(n, " "), size) }

// sync tries again without a new commit, as the replica's own loop does.
func (l *life) sync() error {
	err := l.db.SyncAndWait(ctx)
	if err != nil {
		l.note(err)
		err = l.db.SyncAndWait(ctx)
	}
	if err == nil {
		l.confirmed = l.rows
		l.confirmations++
	}
	return err
}

func (l *life) checkpoint(mode string) error {
	l.commit(20)
	err := l.db.Checkpoint(ctx, mode)
	l.commit(20)
	return err
}

func (l *life) close() error {
	opened := !l.db.Pos().IsZero()
	err := l.db.Close()
	if err == nil && opened {
		l.confirmed = l.rows
		l.confirmations++
	}
	return err
}

func (l *life) snapshot() error {
	_, err := l.db.Replicas[0].Snapshot(ctx)
	return err
}

// restore restores the newest state, which holds at least what is confirmed.
func (l *life) restore(fsy fsys.FS, client litestream.ReplicaClient) (err error) {
	path := l.path("restored")
	opt := litestream.RestoreOptions{Parallelism: 1, Logger: log.New(io.Discard, "", 0), IntegrityCheck: litestream.IntegrityCheckFull}
	withFS(fsy, func() { _, err = litestream.RestoreLatest(ctx, client, path, opt) })
	if err != nil {
		if l.confirmed == 0 && (errors.Is(err, litestream.ErrNoGeneration) || errors.Is(err, litestream.ErrNoSnapshots)) {
			return nil
		}
		return err
	}
	n, err := lifeRows(path)
	if err == nil && n < l.confirmed {
		err = fmt.Errorf("restored %d rows, but %d are confirmed", n, l.confirmed)
	}
	if err != nil {
		l.broken = append(l.broken, err)
	}
	return os.Remove(path)
}

// lifeRows proves that a database that nobody has open holds rows 1 to n, and
// returns n.
func lifeRows(path string) (n int, err error) {
	db, err := sql.Open("sqlite", "file:"+path+"?mode=ro&immutable=1")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	return checkLifeRows(db)
}

func checkLifeRows(db *sql.DB) (n int, err error) {
	rows, err := db.Query(`SELECT n, s FROM t ORDER BY n`)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, rows.Err(), rows.Close()) }()
	for rows.Next() {
		var k int
		var s string
		if err := rows.Scan(&k, &s); err != nil {
			return n, err
		}
		if n++; k != n || !strings.HasPrefix(s, fmt.Sprint(n, " ")) || strings.Trim(s, fmt.Sprint(n, " ")) != "" {
			return n, fmt.Errorf("row %d is %d, %q", n, k, s)
		}
	}
	return n, nil
}

// lifeSteps are the script. What fails does not keep the next step from being
// tried, as in a host that logs errors and goes on.
var lifeSteps = []struct {
	name string
	run  func(l *life) error
}{
	{"open", (*life).open},
	{"first sync", func(l *life) error { l.commit(10); return l.sync() }},
	{"passive", func(l *life) error { return l.checkpoint(litestream.CheckpointModePassive) }},
	{"full", func(l *life) error { return l.checkpoint(litestream.CheckpointModeFull) }},
	{"capture", func(l *life) error { return l.db.Sync(ctx) }},
	{"restart", func(l *life) error { return l.checkpoint(litestream.CheckpointModeRestart) }},
	{"second sync", (*life).sync},
	{"snapshot", (*life).snapshot},
	{"truncate", func(l *life) error { return l.checkpoint(litestream.CheckpointModeTruncate) }},
	{"large commit", func(l *life) error { l.commit(3000); return l.sync() }},
	{"second snapshot", (*life).snapshot},
	{"retention", func(l *life) error { return l.db.Replicas[0].EnforceRetention(ctx) }},
	{"close", func(l *life) error { l.commit(10); return l.close() }},
	{"open again", func(l *life) error { l.commit(10); return l.open() }},
	{"third sync", (*life).sync},
	{"close once more", (*life).close},
	{"open without the wal", (*life).openWithoutWAL},
	{"fourth sync", (*life).sync},
	{"truncate again", func(l *life) error { return l.checkpoint(litestream.CheckpointModeTruncate) }},
	{"last sync", (*life).sync},
	{"truncate and prune", func(l *life) error {
		return errors.Join(l.checkpoint(litestream.CheckpointModeTruncate), l.sync())
	}},
	{"restore", func(l *life) error { return l.restore(l.fs, l.client) }},
	{"close again", (*life).close},
}

// note records what the library says: the errors of its calls, and those in its
// figures.
func (l *life) note(err error) {
	if err != nil {
		l.said = append(l.said, err)
	}
	if l.db == nil {
		return
	}
	stats := l.db.Stats()
	for _, err := range []error{stats.LastError, stats.Replicas[0].LastError} {
		if err != nil {
			l.said = append(l.said, err)
		}
	}
}

// run lives until the end, or until the power is lost.
func (l *life) run(powerLost func() bool) {
	for _, step := range lifeSteps {
		l.step = step.name
		err := step.run(l)
		if err != nil {
			err = fmt.Errorf("%s: %w", step.name, err)
		}
		l.note(err)
		if powerLost() {
			return
		}
		// Whoever asks is told where the replica stands, not where it may be.
		if pos := l.db.Replicas[0].Pos(); err == nil && step.name == "last sync" && pos != l.db.Pos() {
			l.broken = append(l.broken, fmt.Errorf("%s: the replica is at %s, the database at %s", step.name, pos, l.db.Pos()))
		}
	}
}

// reported tells whether the library reported an error that matches err, in a
// call, its figures or its log.
func (l *life) reported(err error) bool {
	for _, said := range l.said {
		if errors.Is(said, err) {
			return true
		}
	}
	return strings.Contains(l.log.String(), err.Error())
}

// unfinished lists the .tmp files of a life.
func (l *life) unfinished() (names []string, err error) {
	err = filepath.WalkDir(l.dir, func(path string, ent fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".tmp") {
			names = append(names, path)
		}
		return err
	})
	return names, err
}
