package litestream_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"example.com/litestream"
	"example.com/litestream/replicatest"

	"github.com/pierrec/lz4/v4"
)

// segmentPaths lists the files of the replica's WAL segments.
func (rt *retainer) segmentPaths(t testing.TB) (paths []string) {
	t.Helper()
	if err := filepath.WalkDir(rt.path(rt.db.Pos().Generation, "wal"), func(path string, ent fs.DirEntry, err error) error {
		if err == nil && !ent.IsDir() {
			paths = append(paths, path)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	slices.Sort(paths)
	return paths
}

func (rt *retainer) mustValidate(t testing.TB) {
	t.Helper()
	if err := rt.r.Validate(ctx); err != nil {
		t.Fatal(err)
	}
	if names := tempFiles(t, rt.dir); len(names) > 0 {
		t.Errorf("left behind: %v", names)
	}
}

func TestValidate_GoodReplicaWhileWritersRun(t *testing.T) {
	rt := newRetainer(t)
	stop, done := make(chan struct{}), make(chan error, 1)
	go func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			_, err := rt.host.Exec(`INSERT INTO t VALUES (randomblob(2000))`)
			if i%20 == 19 && err == nil {
				if err = rt.db.Checkpoint(ctx, litestream.CheckpointModeTruncate); errors.Is(err, litestream.ErrCheckpointBusy) {
					err = nil
				}
			}
			if err != nil {
				done <- err
				return
			}
		}
	}()
	rounds := 10
	if testing.Short() {
		rounds = 3
	}
	generation := rt.db.Pos().Generation
	for range rounds {
		if err := rt.r.Validate(ctx); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	if err := <-done; err != nil {
		t.Error(err)
	}
	if s := rt.r.Stats(); s.ChecksumMismatches != 0 || rt.db.Pos().Generation != generation {
		t.Errorf("%d mismatches, generation %s after %s", s.ChecksumMismatches, rt.db.Pos().Generation, generation)
	}
	rt.mustReplicate(t)
}

// Whatever is wrong on the replica is found, counted, and replaced.
func TestValidate_FindsDamageAndBeginsANewGeneration(t *testing.T) {
	for name, damage := range map[string]func(t *testing.T, rt *retainer){
		"byte of a snapshot": func(t *testing.T, rt *retainer) { flipByte(t, rt.path(rt.db.Pos().Generation, "snapshots")) },
		"byte of a segment":  func(t *testing.T, rt *retainer) { flipByte(t, rt.segmentPaths(t)[1]) },
		"no snapshot": func(t *testing.T, rt *retainer) {
			mustRemove(t, rt.path(rt.db.Pos().Generation, "snapshots"))
		},
		"no first segment":  func(t *testing.T, rt *retainer) { mustRemove(t, rt.segmentPaths(t)[0]) },
		"no middle segment": func(t *testing.T, rt *retainer) { mustRemove(t, rt.segmentPaths(t)[1]) },
		"no last segment": func(t *testing.T, rt *retainer) {
			paths := rt.segmentPaths(t)
			mustRemove(t, paths[len(paths)-1])
		},
		"no index": func(t *testing.T, rt *retainer) { mustRemove(t, filepath.Dir(rt.segmentPaths(t)[2])) },
		"a segment's neighbour in its place": func(t *testing.T, rt *retainer) {
			paths := rt.segmentPaths(t)
			writeFile(t, paths[1], readFile(t, paths[2]))
		},
		"a sound snapshot of other content": func(t *testing.T, rt *retainer) {
			info := rt.phase(t)
			path := rt.path(info.Generation, "snapshots", litestream.FormatIndex(info.Index)+litestream.SnapshotExt)
			b, err := io.ReadAll(lz4.NewReader(bytes.NewReader(readFile(t, path))))
			if err != nil {
				t.Fatal(err)
			}
			b[len(b)-100] ^= 1
			var buf bytes.Buffer
			zw := lz4.NewWriter(&buf)
			if _, err := zw.Write(b); err != nil {
				t.Fatal(err)
			}
			if err := zw.Close(); err != nil {
				t.Fatal(err)
			}
			writeFile(t, path, buf.Bytes())
		},
	} {
		t.Run(name, func(t *testing.T) {
			rt := newRetainer(t)
			leaveUnchecked(t, replicaPart, "the old generation stays as damaged as it is")
			for i := range 3 {
				mustExec(t, rt.host, fmt.Sprintf(`CREATE TABLE u%d AS SELECT randomblob(9000)`, i))
				mustSync(t, rt.db)
			}
			if err := rt.db.Checkpoint(ctx, litestream.CheckpointModeTruncate); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				rt.insert(t, "next index")
				mustSync(t, rt.db)
			}
			rt.mustValidate(t)
			generation := rt.db.Pos().Generation
			damage(t, rt)
			err := rt.r.Validate(ctx)
			mustErrorIs(t, err, litestream.ErrChecksumMismatch)
			if names := tempFiles(t, rt.dir); len(names) > 0 {
				t.Errorf("left behind: %v", names)
			}
			if n := rt.r.Stats().ChecksumMismatches; n != 1 {
				t.Errorf("%d mismatches are counted", n)
			}
			if rt.db.Pos().Generation == generation {
				t.Error("the generation goes on")
			}
			rt.mustValidate(t)
			mustSync(t, rt.db)
			if got := countRows(t, mustRestore(t, rt.client)); got != countRowsOf(t, rt) {
				t.Errorf("restored %d rows", got)
			}
			if n := rt.db.Stats().Generations; n != 2 {
				t.Errorf("%d generations began, want 2", n)
			}
		})
	}
}

func countRowsOf(t testing.TB, rt *retainer) (n int) {
	t.Helper()
	if err := rt.host.QueryRow(`SELECT COUNT(*) FROM t`).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func mustRemove(t testing.TB, path string) {
	t.Helper()
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
}

// flipByte flips one in the middle of a file, or of the newest one in a
// directory.
func flipByte(t testing.TB, path string) {
	t.Helper()
	if ents, err := os.ReadDir(path); err == nil {
		path = filepath.Join(path, ents[len(ents)-1].Name())
	}
	b := readFile(t, path)
	b[len(b)/2] ^= 0x20
	writeFile(t, path, b)
}

func TestValidate_PageSizesAndVacuum(t *testing.T) {
	for _, size := range []int{512, 65536} {
		dir := t.TempDir()
		host := openHost(t, filepath.Join(dir, "db"))
		host.SetMaxOpenConns(1)
		mustExec(t, host, fmt.Sprintf(`PRAGMA journal_mode=DELETE; PRAGMA page_size=%d; VACUUM; PRAGMA journal_mode=WAL`, size))
		mustExec(t, host, `CREATE TABLE t (x)`)
		db := newDB(t, dir)
		manually(db)
		mustOpen(t, db)
		validate := func(when string) {
			t.Helper()
			if err := db.Replicas[0].Validate(ctx); err != nil {
				t.Errorf("page size %d, %s: %v", size, when, err)
			}
		}
		validate("at first")
		for range 50 {
			mustExec(t, host, `INSERT INTO t VALUES (randomblob(20000))`)
		}
		validate("after inserts")
		if db.PageSize() != size {
			t.Fatalf("page size is %d", db.PageSize())
		}
		mustExec(t, host, `DELETE FROM t WHERE rowid % 2`)
		mustExec(t, host, `VACUUM`)
		validate("after VACUUM")
		for _, mode := range []string{litestream.CheckpointModePassive, litestream.CheckpointModeRestart, litestream.CheckpointModeTruncate} {
			if err := db.Checkpoint(ctx, mode); err != nil {
				t.Fatal(err)
			}
			validate("after " + mode)
		}
		mustEqualRestore(t, db, db.Replicas[0].Client())
	}
}

// A client that fails is no proof of damage, and nothing is left behind.
func TestValidate_FailureIsNoMismatch(t *testing.T) {
	rt := newRetainer(t)
	generation := rt.db.Pos().Generation
	fails := func(what string, ctx context.Context, want error) {
		t.Helper()
		err := rt.r.Validate(ctx)
		if !errors.Is(err, want) || errors.Is(err, litestream.ErrChecksumMismatch) {
			t.Errorf("%s: error is %v, want one that matches %v", what, err, want)
		}
		if names := tempFiles(t, rt.dir); len(names) > 0 {
			t.Errorf("%s: left behind: %v", what, names)
		}
	}
	for _, method := range []string{"Snapshots", "WALSegments", "SnapshotReader", "WALSegmentReader"} {
		rt.client.SetPlans()
		rt.insert(t, method)
		mustSync(t, rt.db)
		rt.client.SetPlans(replicatest.FailAll(errInjected, method))
		fails(method, ctx, errInjected)
	}
	rt.client.SetPlans()
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	fails("cancelled before", cancelled, context.Canceled)
	cancelled, cancel = context.WithCancel(ctx)
	hung := hangOn(rt.client, "SnapshotReader")
	go func() { <-hung; cancel() }()
	within(t, "a cancelled Validate", func() { fails("cancelled meanwhile", cancelled, context.Canceled) })
	rt.client.SetPlans()
	if s := rt.r.Stats(); s.ChecksumMismatches != 0 || rt.db.Pos().Generation != generation {
		t.Errorf("%d mismatches, generation %s after %s", s.ChecksumMismatches, rt.db.Pos().Generation, generation)
	}
	rt.mustValidate(t)
	if err := rt.db.Close(); err != nil {
		t.Fatal(err)
	}
	fails("closed", ctx, litestream.ErrDBClosed)

	db := newDB(t, t.TempDir())
	mustOpen(t, db)
	mustErrorIs(t, db.Replicas[0].Validate(ctx), litestream.ErrNoGeneration)
	if err := litestream.NewReplica(nil, "x", nil).Validate(ctx); err == nil {
		t.Error("a replica without anything is valid")
	}
}

// A generation that began while the replica was read is not given up for the
// damage of the one before.
func TestValidate_SparesTheGenerationThatBeganMeanwhile(t *testing.T) {
	rt := newRetainer(t)
	leaveUnchecked(t, replicaPart, "the old generation stays as damaged as it is")
	rt.insert(t, "x")
	mustSync(t, rt.db)
	flipByte(t, rt.path(rt.db.Pos().Generation, "snapshots"))
	var born string
	rt.client.SetPlans(failIf(func(call replicatest.Call) error {
		if call.Method == "SnapshotReader" && call.N == 1 {
			born = rt.generation(t)
		}
		return nil
	}))
	mustErrorIs(t, rt.r.Validate(ctx), litestream.ErrChecksumMismatch)
	rt.client.SetPlans()
	if got := rt.db.Pos().Generation; got != born {
		t.Errorf("generation %s began after %s", got, born)
	}
	rt.mustValidate(t)
}

// Retention that runs between the listing of the snapshots and that of the
// segments is no damage. PITFALLS row 26
func TestValidate_RetentionBetweenTheListingsIsNoDamage(t *testing.T) {
	rt := newRetainer(t)
	info := rt.phase(t)
	pos := info.Pos()
	newest := rt.path(pos.Generation, "snapshots", litestream.FormatIndex(pos.Index)+litestream.SnapshotExt)
	lists := 0
	rt.client.SetPlans(failIf(func(call replicatest.Call) error {
		switch {
		case call.Method == "Snapshots" && call.N == 1: // the newest one is still being written
			return os.Rename(newest, newest+".tmp")
		case call.Method == "WALSegments" && call.N == 1:
			if err := os.Rename(newest+".tmp", newest); err != nil {
				return err
			}
			return rt.client.Unwrap().DeleteWALSegments(ctx, []litestream.Pos{{Generation: pos.Generation}})
		case call.Method == "WALSegments":
			lists++
		}
		return nil
	}))
	rt.mustValidate(t)
	rt.client.SetPlans()
	if lists == 0 {
		t.Error("the listing was not repeated")
	}
	if err := rt.client.DeleteSnapshot(ctx, pos.Generation, 0); err != nil {
		t.Error(err)
	}
}

func TestValidate_IntervalRunsIt(t *testing.T) {
	jf := newJobFixture(t, func(r *litestream.Replica) { r.ValidationInterval = time.Hour })
	leaveUnchecked(t, replicaPart, "the old generation stays as damaged as it is")
	jf.at(59 * time.Minute)
	pass(30 * time.Millisecond)
	if n := jf.client.Calls("SnapshotReader"); n > 0 {
		t.Errorf("%d validations before the interval is over", n)
	}
	generation := jf.db.Pos().Generation
	flipByte(t, filepath.Join(jf.dir, "file", "generations", generation, "snapshots"))
	jf.at(61 * time.Minute)
	eventually(t, 10*time.Second, "the damage is found", func() bool { return jf.replica().Stats().ChecksumMismatches == 1 })
	eventually(t, 10*time.Second, "a new generation is replicated", func() bool {
		pos := jf.replica().Pos()
		return pos.Generation != generation && pos == jf.db.Pos()
	})
	eventually(t, 10*time.Second, "it is logged", func() bool { return strings.Contains(jf.log.String(), "checksum mismatch") })
	if got := countRows(t, mustRestore(t, jf.client)); got != 1 {
		t.Errorf("restored %d rows", got)
	}
}
