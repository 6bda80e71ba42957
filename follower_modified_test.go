package litestream_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"example.com/litestream"
	"example.com/litestream/internal/faultfs"
	"example.com/litestream/internal/fsys"
)

// upstreamSwitch is an upstream that is down while it is nil.
type upstreamSwitch struct {
	db    atomic.Pointer[litestream.DB]
	calls atomic.Int64
}

func (u *upstreamSwitch) Stream(ctx context.Context, pos litestream.Pos) (litestream.StreamReader, error) {
	u.calls.Add(1)
	if db := u.db.Load(); db != nil {
		return db.Stream(ctx, pos)
	}
	return nil, errInjected
}

// A local write is found whenever the follower was open meanwhile, also when no
// change of the upstream came between its start, the write and its end. No step
// runs a checkpoint: that would open the follower's connection.
func TestFollower_LocalWriteIsFoundWhenever(t *testing.T) {
	write := func(t *testing.T, f *litestream.DB) {
		t.Helper()
		stray := openHost(t, f.Path())
		mustExec(t, stray, "INSERT INTO t (n, s) VALUES (1000, 'stray')")
	}
	reopen := func(t *testing.T, f *litestream.DB) {
		t.Helper()
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		mustOpen(t, f)
	}
	for name, test := range map[string]struct {
		steps     func(t *testing.T, f *litestream.DB, up *upstreamSwitch)
		snapshots uint64 // since the last opening
	}{
		"after the first snapshot": {func(t *testing.T, f *litestream.DB, _ *upstreamSwitch) {
			write(t, f)
		}, 2},
		"while the upstream is down": {func(t *testing.T, f *litestream.DB, up *upstreamSwitch) {
			primary := up.db.Swap(nil)
			reopen(t, f)
			write(t, f)
			up.db.Store(primary)
		}, 1},
		"before it is closed": {func(t *testing.T, f *litestream.DB, _ *upstreamSwitch) {
			write(t, f)
			reopen(t, f)
		}, 1},
		"before it is closed, the upstream never reached": {func(t *testing.T, f *litestream.DB, up *upstreamSwitch) {
			primary := up.db.Swap(nil)
			reopen(t, f)
			write(t, f)
			up.db.Store(primary)
			reopen(t, f)
		}, 1},
		"never": {func(t *testing.T, f *litestream.DB, _ *upstreamSwitch) {
			reopen(t, f)
		}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			primary, host := newPrimary(t, filepath.Join(dir, "primary"))
			up := &upstreamSwitch{}
			up.db.Store(primary)
			f := newFollower(t, filepath.Join(dir, "follower"), up)
			checkAtEnd(t, f)
			mustOpen(t, f)
			mustCatchUp(t, primary, f)
			test.steps(t, f, up)
			mustExec(t, host, "CREATE TABLE u (x)") // does not touch the page of t
			mustFollow(t, primary, f)
			mustBeIntact(t, openHost(t, f.Path(), "query_only(1)"))
			if n := f.Stats().Follower.Snapshots; n != test.snapshots {
				t.Errorf("%d snapshots, want %d", n, test.snapshots)
			}
		})
	}
}

// A file that takes the database's place is not taken for it, also when the
// follower is closed before it looks.
func TestFollower_FileIsReplacedBeforeItIsClosed(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("an open file cannot be replaced")
	}
	dir := t.TempDir()
	primary, host := newPrimary(t, filepath.Join(dir, "primary"))
	f := newFollower(t, filepath.Join(dir, "follower"), primary)
	checkAtEnd(t, f)
	mustOpen(t, f)
	mustFollow(t, primary, f)
	other := filepath.Join(dir, "other")
	stray := openHost(t, other)
	mustExec(t, stray, "CREATE TABLE t (n INTEGER PRIMARY KEY, s TEXT); INSERT INTO t (s) VALUES ('other')")
	if err := errors.Join(stray.Close(), os.Rename(other, f.Path()), f.Close()); err != nil {
		t.Fatal(err)
	}
	mustOpen(t, f)
	mustExec(t, host, "CREATE TABLE u (x)")
	mustFollow(t, primary, f)
	if n := f.Stats().Follower.Snapshots; n != 1 {
		t.Errorf("%d snapshots, want 1", n)
	}
}

// A power loss takes back what the primary and its follower had, the primary
// further than the follower's database. What the primary writes instead is not
// applied to pages of what it lost.
func TestFollower_PowerLossTakesThePrimaryBack(t *testing.T) {
	dir := t.TempDir()
	primary, host := newPrimary(t, filepath.Join(dir, "primary"))
	mustExec(t, host, "CREATE TABLE lost (x); CREATE TABLE instead (x)")
	f := newFollower(t, filepath.Join(dir, "follower"), primary)
	checkAtEnd(t, f)
	mustOpen(t, f)
	mustFollow(t, primary, f)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}

	// The follower's state is of here,
	state := filepath.Join(f.MetaPath(), "follower")
	mustOpen(t, f)
	mustExec(t, host, "INSERT INTO t (s) VALUES ('early')")
	mustCatchUp(t, primary, f)
	early := readFile(t, state)

	// the primary falls back to here,
	mustExec(t, host, "INSERT INTO t (s) VALUES ('kept')")
	mustCatchUp(t, primary, f)
	kept := primary.Pos()
	if err := errors.Join(host.Close(), primary.Close(), os.CopyFS(filepath.Join(dir, "kept"), os.DirFS(filepath.Dir(primary.Path())))); err != nil {
		t.Fatal(err)
	}

	// and this is durable in the follower's database.
	mustOpen(t, primary)
	host = openHost(t, primary.Path())
	mustExec(t, host, "INSERT INTO lost VALUES (1)")
	mustCatchUp(t, primary, f)
	if err := errors.Join(f.Close(), host.Close(), primary.Close(), os.WriteFile(state, early, 0o600), litestream.RebootFollowerState(state)); err != nil {
		t.Fatal(err)
	}

	again := newDB(t, filepath.Join(dir, "kept"))
	mustOpen(t, again)
	if got := again.Pos(); got != kept {
		t.Fatalf("the primary comes back at %s, want %s", got, kept)
	}
	host = openHost(t, again.Path())
	mustExec(t, host, "INSERT INTO instead VALUES (2)")
	f.StreamClient = again
	mustOpen(t, f)
	mustFollow(t, again, f)
	if n := f.Stats().Follower.Snapshots; n != 1 {
		t.Errorf("%d snapshots, want 1", n)
	}
	if err := f.Close(); err != nil { // before its upstream
		t.Error(err)
	}
}

// Before the first record there is nothing to checkpoint, and nothing that
// decides about the page size.
func TestFollower_CheckpointBeforeTheFirstRecord(t *testing.T) {
	for name, prepare := range map[string]func(t *testing.T, path string){
		"no file": func(*testing.T, string) {},
		"empty file": func(t *testing.T, path string) {
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		},
		"a database": func(t *testing.T, path string) { mustExec(t, openHost(t, path), "CREATE TABLE mine (x)") },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			primary, host := newPrimary(t, filepath.Join(dir, "primary"))
			up := &upstreamSwitch{}
			f := newFollower(t, filepath.Join(dir, "follower"), up)
			checkAtEnd(t, f)
			prepare(t, f.Path())
			mustOpen(t, f)
			for range 2 {
				if err := f.Checkpoint(ctx, litestream.CheckpointModeTruncate); err != nil {
					t.Error(err)
				}
			}
			up.db.Store(primary)
			mustExec(t, host, "INSERT INTO t (s) VALUES ('a')")
			mustFollow(t, primary, f)
		})
	}
}

// A process that was killed while it built the database leaves a file of its
// size. A start that comes later removes it.
func TestFollower_UnfinishedSnapshotIsRemoved(t *testing.T) {
	dir := t.TempDir()
	primary, _ := newPrimary(t, filepath.Join(dir, "primary"))
	f := newFollower(t, filepath.Join(dir, "follower"), primary)
	checkAtEnd(t, f)
	const left = ".0123456789abcdef-1.tmp"
	for _, suffix := range []string{left, "-other" + left} {
		if err := os.WriteFile(f.Path()+suffix, []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	young := f.Path() + ".fedcba9876543210-1.tmp"
	if err := os.WriteFile(young, nil, 0o600); err != nil { // perhaps somebody restores
		t.Fatal(err)
	}
	hourAgo := time.Now().Add(-time.Hour)
	for _, name := range []string{f.Path() + left, f.Path() + "-other" + left} {
		if err := os.Chtimes(name, hourAgo, hourAgo); err != nil {
			t.Fatal(err)
		}
	}
	mustOpen(t, f)
	mustFollow(t, primary, f)
	names, err := filepath.Glob(filepath.Join(filepath.Dir(f.Path()), "*.tmp"))
	slices.Sort(names)
	if want := []string{f.Path() + "-other" + left, young}; err != nil || !slices.Equal(names, want) {
		t.Errorf("%q is left, want %q; %v", names, want, err)
	}
}

// The stored position of a database that is missing, or empty, does not wait for
// the next one.
func TestFollower_StateWithoutADatabaseIsRemoved(t *testing.T) {
	for name, empty := range map[string]bool{"missing": false, "empty": true} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			primary, _ := newPrimary(t, filepath.Join(dir, "primary"))
			up := &upstreamSwitch{}
			up.db.Store(primary)
			f := newFollower(t, filepath.Join(dir, "follower"), up)
			checkAtEnd(t, f)
			mustOpen(t, f)
			mustFollow(t, primary, f)
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
			for _, suffix := range []string{"", "-wal", "-shm"} {
				if err := os.Remove(f.Path() + suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
					t.Fatal(err)
				}
			}
			if empty {
				if err := os.WriteFile(f.Path(), nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			up.db.Store(nil)
			mustOpen(t, f)
			if _, err := os.Stat(filepath.Join(f.MetaPath(), "follower")); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the stored position is still there: %v", err)
			}
			up.db.Store(primary)
			mustFollow(t, primary, f)
		})
	}
}

// A position that could not be stored is stored later, also without another
// change, and until then nothing hides the error.
func TestFollower_StoringIsTriedAgain(t *testing.T) {
	dir := t.TempDir()
	primary, host := newPrimary(t, filepath.Join(dir, "primary"))
	f := newFollower(t, filepath.Join(dir, "follower"), primary)
	checkAtEnd(t, f)
	state := filepath.Join(f.MetaPath(), "follower")
	var failed atomic.Int64
	faulty := faultfs.New(fsys.OS)
	faulty.SetHook(func(op faultfs.Op) error {
		if op.Name == faultfs.Rename && op.Path == state {
			failed.Add(1)
			return faultfs.EIO
		}
		return nil
	})
	f.SetFS(faulty)
	mustOpen(t, f)
	mustCatchUp(t, primary, f)
	mustAwait(t, "storing fails", func() bool { return errors.Is(f.Stats().LastError, faultfs.EIO) })
	for range 2 { // the second comes when the first has been noted
		mustExec(t, host, "INSERT INTO t (s) VALUES ('a')")
		mustCatchUp(t, primary, f)
	}
	if err := f.Stats().LastError; !errors.Is(err, faultfs.EIO) {
		t.Errorf("a change hides that storing fails: %v", err)
	}
	mustFollow(t, primary, f)
	before := failed.Load()
	mustAwait(t, "it fails again, after the last change", func() bool { return failed.Load() > before })
	faulty.Reset()
	mustAwait(t, "it is stored", func() bool {
		_, err := os.Stat(state)
		return err == nil && f.Stats().LastError == nil
	})
	mustFollow(t, primary, f)
}

// A position of a generation that the follower has left is waited for no
// longer. One that it has not heard of may be to come.
func TestFollower_WaitPosOfAGenerationThatIsLeft(t *testing.T) {
	dir := t.TempDir()
	primary, host := newPrimary(t, filepath.Join(dir, "primary"))
	f := newFollower(t, filepath.Join(dir, "follower"), primary)
	checkAtEnd(t, f)
	mustOpen(t, f)
	mustFollow(t, primary, f)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	mustOpen(t, f) // the generation is that of the stored position
	lost := primary.Pos()
	lost.Index++
	wait, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	waited := make(chan error, 1)
	go func() { waited <- f.WaitPos(wait, lost) }()
	if err := primary.BeginGeneration(ctx, "a test asks for it"); err != nil {
		t.Fatal(err)
	}
	mustExec(t, host, "INSERT INTO t (s) VALUES ('new')")
	mustFollow(t, primary, f)
	mustErrorIs(t, <-waited, litestream.ErrGenerationChanged)
	mustErrorIs(t, f.WaitPos(wait, lost), litestream.ErrGenerationChanged)

	ended, cancel := context.WithCancel(ctx)
	cancel()
	mustErrorIs(t, f.WaitPos(ended, litestream.Pos{Generation: "0123456789abcdef"}), context.Canceled)
}
