package litestream_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"example.com/litestream"
)

// fileLock is one row of /proc/locks: a POSIX lock that this process holds on
// bytes first to last of a file.
type fileLock struct {
	name        string
	write       bool
	first, last int64
}

func (l fileLock) String() string {
	kind := "READ"
	if l.write {
		kind = "WRITE"
	}
	return fmt.Sprintf("%s %s %d-%d", l.name, kind, l.first, l.last)
}

// heldLocks returns the POSIX locks that this process holds on the files. It
// must not open them: see I8.
func heldLocks(t testing.TB, paths ...string) []fileLock {
	t.Helper()
	names := make(map[string]string) // by inode, as the kernel writes it
	for _, path := range paths {
		var st syscall.Stat_t
		if err := syscall.Stat(path, &st); err != nil {
			t.Fatal(err)
		}
		names[strconv.FormatUint(st.Ino, 10)] = filepath.Base(path)
	}
	f, err := os.Open("/proc/locks")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var locks []fileLock
	for rows := bufio.NewScanner(f); rows.Scan(); {
		// 1: POSIX  ADVISORY  READ 10560 fe:00:9979135 128 128
		col := strings.Fields(rows.Text())
		if len(col) != 8 || col[1] != "POSIX" || col[4] != strconv.Itoa(os.Getpid()) {
			continue
		}
		name := names[col[5][strings.LastIndexByte(col[5], ':')+1:]]
		if name == "" {
			continue
		}
		l := fileLock{name: name, write: col[3] == "WRITE", last: 1<<63 - 1}
		if l.first, err = strconv.ParseInt(col[6], 10, 64); err != nil {
			t.Fatalf("%q: %v", rows.Text(), err)
		}
		if col[7] != "EOF" {
			if l.last, err = strconv.ParseInt(col[7], 10, 64); err != nil {
				t.Fatalf("%q: %v", rows.Text(), err)
			}
		}
		locks = append(locks, l)
	}
	return locks
}

// lostLocks returns the locks of before of which a byte is no longer locked.
// The kernel joins and splits a process's rows, so bytes are compared.
func lostLocks(before, after []fileLock) (lost []fileLock) {
	for _, l := range before {
		at := l.first // everything before it is locked
		for {
			i := slices.IndexFunc(after, func(a fileLock) bool {
				return a.name == l.name && (a.write || !l.write) && a.first <= at && at <= a.last
			})
			if i < 0 {
				lost = append(lost, l)
				break
			}
			if after[i].last >= l.last {
				break
			}
			at = after[i].last + 1
		}
	}
	return lost
}

func init() {
	believesAlone = func(path string) (alone bool, err error) {
		f, err := os.Open(path)
		if err != nil {
			return false, err
		}
		defer func() { err = errors.Join(err, f.Close()) }()
		// The bytes of SQLite's SHARED lock, see os_unix.c.
		lock := syscall.Flock_t{Type: syscall.F_WRLCK, Whence: io.SeekStart, Start: 0x40000002, Len: 510}
		err = syscall.FcntlFlock(f.Fd(), syscall.F_GETLK, &lock)
		return lock.Type == syscall.F_UNLCK, err
	}
}

// Closing any descriptor of the database or -shm file would drop the host's
// locks, and with them the only thing that keeps another process from deleting
// the WAL under it (I8).
//
// PITFALLS row 1
func TestHostKeepsItsLocksThroughEveryCall(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "db")
	host := openHost(t, path)
	mustExec(t, host, "CREATE TABLE t (n)")
	mustExec(t, host, "INSERT INTO t VALUES (1)")
	reader, err := host.BeginTx(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Rollback()
	var n int
	if err := reader.QueryRow("SELECT count(*) FROM t").Scan(&n); err != nil {
		t.Fatal(err)
	}
	held := func() []fileLock { return heldLocks(t, path, path+"-shm") }
	// SQLite's: SHARED on the database, and on the -shm file that it is in use
	// and the reader's mark.
	want := held()
	for _, name := range []string{"db", "db-shm"} {
		if len(locksOf(want, name)) == 0 {
			t.Fatalf("the host holds no lock on %s: %v", name, want)
		}
	}

	db := newDB(t, dir)
	replica := db.Replicas[0]
	collect := func() error {
		for range 2 { // the second frees what the finalizers of the first let go
			runtime.GC()
			time.Sleep(time.Millisecond) // finalizers run on a goroutine that says nothing when it is done
		}
		return nil
	}
	write := func() error {
		_, err := host.Exec("INSERT INTO t VALUES (2)")
		return err
	}
	checkpoint := func(mode string) func() error {
		return func() error {
			if err := db.Checkpoint(ctx, mode); !errors.Is(err, litestream.ErrCheckpointBusy) {
				return err
			}
			return nil // the host's reader is in the way
		}
	}
	read := func(rc io.ReadCloser, err error) error {
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, rc)
		return errors.Join(err, rc.Close())
	}
	calls := []struct {
		name string
		call func() error
	}{
		{"EnsureExists", func() error { return db.EnsureExists(ctx) }},
		{"UpdatedAt", func() error { _, err := db.UpdatedAt(); return err }},
		{"WithFile, closed", func() error { return db.WithFile(func(*os.File) error { return nil }) }},
		{"Open", db.Open},
		{"write", write},
		{"Sync", func() error { return db.Sync(ctx) }},
		{"SyncAndWait", func() error { return db.SyncAndWait(ctx) }},
		{"WaitPos", func() error { return db.WaitPos(ctx, db.Pos()) }},
		{"PASSIVE", checkpoint(litestream.CheckpointModePassive)},
		{"FULL", checkpoint(litestream.CheckpointModeFull)},
		{"RESTART", checkpoint(litestream.CheckpointModeRestart)},
		{"TRUNCATE", checkpoint(litestream.CheckpointModeTruncate)},
		{"write", write},
		{"Replica.Sync", func() error { return replica.Sync(ctx) }},
		{"Replica.Snapshot", func() error { _, err := replica.Snapshot(ctx); return err }},
		{"cancelled Snapshot", func() error {
			ctx, cancel := context.WithCancel(ctx)
			cancel()
			if _, err := replica.Snapshot(ctx); !errors.Is(err, context.Canceled) {
				return fmt.Errorf("got %v", err)
			}
			return nil
		}},
		{"WithFile", func() error {
			return db.WithFile(func(f *os.File) error {
				_, err := f.ReadAt(make([]byte, 100), 0)
				return err
			})
		}},
		{"WALSegments", func() error {
			itr, err := db.WALSegments(ctx, db.Pos().Generation)
			if err != nil {
				return err
			}
			itr.Next()
			return itr.Close()
		}},
		{"WALSegmentReader", func() error { return read(db.WALSegmentReader(ctx, db.Pos().Truncate())) }},
		{"WALReader", func() error { return read(db.WALReader(ctx, db.Pos().Generation, db.Pos().Index)) }},
		{"SQLDB", func() error { return db.SQLDB().QueryRow("SELECT count(*) FROM t").Scan(&n) }},
		{"Stats", func() error { _ = db.Stats(); return nil }},
		{"accessors", func() error {
			_, err := db.CurrentGeneration()
			_, _ = db.PageSize(), replica.Pos()
			return err
		}},
		{"UpdatedAt", func() error { _, err := db.UpdatedAt(); return err }},
		{"RestoreLatest", func() error { mustRestore(t, replica.Client()); return nil }},
		{"second DB", func() error {
			second := litestream.NewDB(path)
			if err := second.Open(); !errors.Is(err, litestream.ErrDatabaseLocked) {
				return fmt.Errorf("got %v", err)
			}
			return second.Close()
		}},
		{"GC", collect},
		{"Replica.Stop", func() error { replica.Stop(); return nil }},
		{"Close", db.Close},
		{"GC, closed", collect},
		{"Close again", db.Close},
		{"Open again", db.Open},
		{"write", write},
		{"SyncAndWait again", func() error { return db.SyncAndWait(ctx) }},
		{"cancelled Shutdown", func() error {
			ctx, cancel := context.WithCancel(ctx)
			cancel()
			_ = db.Shutdown(ctx) // the error says that the upload was cut off
			return nil
		}},
		{"DB given up", func() error {
			db := litestream.NewDB(path)
			quiet(db)
			return errors.Join(db.Open(), db.Sync(ctx), db.Close())
		}},
		{"GC, given up", collect},
	}
	for _, c := range calls {
		if err := c.call(); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		if lost := lostLocks(want, held()); len(lost) > 0 {
			t.Fatalf("%s dropped the host's locks %v", c.name, lost)
		}
	}

	// The proof that a dropped lock would have been seen.
	for _, name := range []string{path, path + "-shm"} {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
		lost := lostLocks(want, held())
		if len(locksOf(lost, filepath.Base(name))) == 0 {
			t.Errorf("opening and closing %s was not noticed: had %v, have %v", name, want, held())
		}
	}
}

func locksOf(locks []fileLock, name string) (a []fileLock) {
	for _, l := range locks {
		if l.name == name {
			a = append(a, l)
		}
	}
	return a
}

func TestLostLocksComparesBytes(t *testing.T) {
	before := []fileLock{{"db", false, 10, 20}, {"shm", true, 3, 3}}
	for _, test := range []struct {
		name  string
		after []fileLock
		lost  int
	}{
		{"unchanged", before, 0},
		{"joined with another", []fileLock{{"db", false, 5, 30}, {"shm", true, 3, 9}}, 0},
		{"split", []fileLock{{"db", true, 16, 20}, {"db", false, 10, 15}, {"shm", true, 3, 3}}, 0},
		{"a byte is gone", []fileLock{{"db", false, 10, 14}, {"db", false, 16, 20}, {"shm", true, 3, 3}}, 1},
		{"weaker", []fileLock{{"db", false, 10, 20}, {"shm", false, 3, 3}}, 1},
		{"to the end of the file", []fileLock{{"db", false, 0, 1<<63 - 1}, {"shm", true, 3, 3}}, 0},
		{"another file", []fileLock{{"shm", false, 10, 20}, {"shm", true, 3, 3}}, 1},
		{"all gone", nil, 2},
	} {
		if lost := lostLocks(before, test.after); len(lost) != test.lost {
			t.Errorf("%s: lost %v", test.name, lost)
		}
	}
}
