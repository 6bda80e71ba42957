package litestream_test

import (
	"bytes"
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"example.com/litestream"
	"example.com/litestream/fileclient"
	"example.com/litestream/replicatest"
)

// moment is a state of a database that its history must yield again.
type moment struct {
	note   string         // a text that the database holds from this moment on
	at     time.Time      // later than what was stored for it, earlier than all that follows
	newest time.Time      // when the last of what it needs was stored
	pos    litestream.Pos // where the DB and its replica were
	want   string         // all rows
}

// history is a database whose replica holds many moments, in several
// generations of several WAL indexes.
type history struct {
	dir     string
	client  *fileclient.FileReplicaClient
	db      *litestream.DB
	host    *sql.DB
	moments []moment
}

func newHistory(t testing.TB) *history {
	h := &history{dir: t.TempDir()}
	h.client = fileclient.NewFileReplicaClient(filepath.Join(h.dir, "replica"))
	h.open(t)
	mustExec(t, h.host, `CREATE TABLE log (n INTEGER PRIMARY KEY, note TEXT)`)
	mustExec(t, h.host, `CREATE TABLE state (k TEXT PRIMARY KEY, v)`)
	return h
}

// open opens the host and the library, which captures when the test says so.
func (h *history) open(t testing.TB) {
	t.Helper()
	h.db = newDB(t, h.dir)
	mustOpen(t, h.db)
	h.db.StopMonitor()
	h.host = openHost(t, h.db.Path())
}

// log commits one transaction that leaves the note in the database.
func (h *history) log(t testing.TB, note string) {
	t.Helper()
	mustExec(t, h.host, `INSERT INTO log (note) VALUES (?)`, note+strings.Repeat(" and more", 400))
	mustExec(t, h.host, `INSERT OR REPLACE INTO state VALUES ('last', ?)`, note)
}

// mark notes a moment: nothing is stored any more before its time is over.
func (h *history) mark(t testing.TB, note string) {
	t.Helper()
	h.log(t, "early-"+note)
	mustSync(t, h.db)
	mustExec(t, h.host, `DELETE FROM log WHERE n % 7 = ?`, len(h.moments)%7)
	h.log(t, note)
	mustSync(t, h.db)
	m := moment{note: note, newest: newestFile(t, h.client.Path()), pos: h.db.Pos(), want: dump(t, h.host)}
	m.at = h.tick(t, m.newest)
	h.tick(t, m.at)
	h.moments = append(h.moments, m)
}

// tick waits until the file system stamps new files with a time after t, and
// returns such a time. Its clock may run some milliseconds behind time.Now.
func (h *history) tick(t testing.TB, after time.Time) (now time.Time) {
	t.Helper()
	probe := filepath.Join(h.dir, "probe")
	eventually(t, 10*time.Second, "the clock goes on", func() bool {
		writeFile(t, probe, []byte(after.String()))
		info, err := os.Stat(probe)
		if err != nil {
			t.Fatal(err)
		}
		now = info.ModTime()
		return now.After(after)
	})
	return now
}

// begin makes the next commit begin a new generation: the WAL is gone.
func (h *history) begin(t testing.TB) {
	t.Helper()
	before := h.db.Pos().Generation
	if err := h.db.Checkpoint(ctx, litestream.CheckpointModeTruncate); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(h.host.Close(), h.db.Close()); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(h.db.WALPath()); err != nil {
		t.Fatal(err)
	}
	h.open(t)
	mustSync(t, h.db)
	if after := h.db.Pos().Generation; after == before {
		t.Fatalf("still in generation %s", before)
	}
}

func (h *history) checkpoint(t testing.TB, mode string) {
	t.Helper()
	if err := h.db.Checkpoint(ctx, mode); err != nil {
		t.Fatal(err)
	}
}

func (h *history) snapshot(t testing.TB) {
	t.Helper()
	if _, err := h.db.Replicas[0].Snapshot(ctx); err != nil {
		t.Fatal(err)
	}
}

// newestFile returns the latest modification time below dir.
func newestFile(t testing.TB, dir string) (newest time.Time) {
	t.Helper()
	if err := filepath.WalkDir(dir, func(_ string, ent fs.DirEntry, err error) error {
		if err != nil || ent.IsDir() {
			return err
		}
		info, err := ent.Info()
		if err == nil && info.ModTime().After(newest) {
			newest = info.ModTime()
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return newest
}

// dump returns all rows of all tables of a history.
func dump(t testing.TB, db *sql.DB) string {
	t.Helper()
	var s string
	if err := db.QueryRow(`SELECT
		(SELECT group_concat(n || '=' || note, char(10)) FROM (SELECT * FROM log ORDER BY n)) || char(10) ||
		(SELECT group_concat(k || '=' || v, char(10)) FROM (SELECT * FROM state ORDER BY k))`).Scan(&s); err != nil {
		t.Fatal(err)
	}
	return s
}

// dumpFile is dump of a database that nobody has open.
func dumpFile(t testing.TB, path string) string {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+path+"?mode=ro")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	return dump(t, db)
}

// restoreAt restores into a new file, whose path it returns.
func restoreAt(t testing.TB, client litestream.ReplicaClient, at time.Time) (string, litestream.Pos) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "restored")
	pos, err := litestream.RestoreAt(ctx, client, path, at, quietRestore())
	if err != nil {
		t.Fatal(err)
	}
	return path, pos
}

func quietRestore() litestream.RestoreOptions {
	opt := litestream.NewRestoreOptions()
	opt.Logger = (&logBuffer{}).logger()
	opt.IntegrityCheck = litestream.IntegrityCheckFull
	return opt
}

// mustBeAt checks that a restored file holds a moment, and nothing later: not
// even in pages that no table uses.
func (h *history) mustBeAt(t testing.TB, path string, i int) {
	t.Helper()
	if got := dumpFile(t, path); got != h.moments[i].want {
		t.Errorf("%s: other rows were restored:\n%.300s", h.moments[i].note, got)
	}
	file := readFile(t, path)
	for _, later := range h.moments[i+1:] {
		if bytes.Contains(file, []byte(later.note)) {
			t.Errorf("%s: the file holds %s", h.moments[i].note, later.note)
		}
	}
}

// twentyMoments passes through restarts of the WAL, snapshots with and without
// a commit since the moment before, and new generations.
func twentyMoments(t testing.TB) *history {
	h := newHistory(t)
	for n := 1; n <= 20; n++ {
		h.mark(t, fmt.Sprintf("moment-%02d", n))
		switch n {
		case 2, 8, 13, 18:
			h.checkpoint(t, litestream.CheckpointModeTruncate)
		case 3, 9, 10, 16:
			h.checkpoint(t, litestream.CheckpointModeRestart)
		case 4, 17:
			h.snapshot(t)
		case 5, 11, 19:
			h.log(t, fmt.Sprintf("between-%02d", n))
			h.snapshot(t)
		case 7, 14:
			h.begin(t)
		}
	}
	return h
}

func TestHistory(t *testing.T) {
	h := twentyMoments(t)
	generations, indexes := map[string]bool{}, map[litestream.Pos]bool{}
	for _, m := range h.moments {
		generations[m.pos.Generation], indexes[m.pos.Truncate()] = true, true
	}
	if len(generations) != 3 || len(indexes) < 9 {
		t.Fatalf("%d generations and %d indexes: not the history that was meant", len(generations), len(indexes))
	}
	t.Run("EachMomentIsRestoredExactly", h.testEachMoment)
	t.Run("NothingLaterThanTheMoment", h.testNothingLater)
	t.Run("PlanIsWhatIsRestored", h.testPlan)
	t.Run("BeforeTheFirstSnapshot", h.testTooEarly)
	t.Run("UselessGenerationsHideNothing", h.testUselessGenerations)
	t.Run("ListingsInAnyOrderAndShortReads", h.testShuffled)
	t.Run("ShortBodiesAreErrors", h.testShortBodies)
	t.Run("Find", h.testFind)
	t.Run("TimeBounds", h.testTimeBounds)
	t.Run("RestoreToTheEndOfAnIndex", h.testRestoreIndex)
}

// PITFALLS row 22
func (h *history) testEachMoment(t *testing.T) {
	for i, m := range h.moments {
		path, pos := restoreAt(t, h.client, m.at)
		h.mustBeAt(t, path, i)
		if pos != m.pos {
			t.Errorf("%s: restored to %s, want %s", m.note, pos, m.pos)
		}
		// The moment of the last file includes it.
		if _, pos := restoreAt(t, h.client, m.newest); pos != m.pos {
			t.Errorf("%s: restored to %s at the time of its last file, want %s", m.note, pos, m.pos)
		}
	}
	last := len(h.moments) - 1
	path, pos := restoreAt(t, h.client, time.Time{})
	h.mustBeAt(t, path, last)
	if pos != h.moments[last].pos {
		t.Errorf("restored to %s without a time, want %s", pos, h.moments[last].pos)
	}
}

// PITFALLS row 22
func (h *history) testNothingLater(t *testing.T) {
	for i, m := range h.moments[1:] {
		path, pos := restoreAt(t, h.client, m.newest.Add(-1))
		if strings.Contains(dumpFile(t, path), "="+m.note) {
			t.Errorf("%s: restored before it was stored, to %s", m.note, pos)
		}
		before := h.moments[i] // i counts from the second
		if m.pos.Generation == before.pos.Generation {
			continue
		}
		created, _, err := litestream.GenerationTimeBounds(ctx, h.client, m.pos.Generation)
		if err != nil {
			t.Fatal(err)
		}
		if _, pos := restoreAt(t, h.client, created.Add(-1)); pos != before.pos {
			t.Errorf("%s: restored to %s just before the generation had a snapshot, want %s", m.note, pos, before.pos)
		}
	}
}

func (h *history) testPlan(t *testing.T) {
	for _, m := range h.moments {
		plan, err := litestream.PlanRestore(ctx, h.client, m.at)
		if err != nil {
			t.Fatal(err)
		}
		last := plan.Segments[len(plan.Segments)-1]
		if plan.Generation != m.pos.Generation || last.Index != m.pos.Index || last.Offset >= m.pos.Offset {
			t.Errorf("%s: the plan reaches the end of %s, want %s", m.note, last.Pos(), m.pos)
		}
		if plan.CreatedAt.After(m.newest) || plan.Snapshot.CreatedAt.After(m.newest) {
			t.Errorf("%s: the plan holds what was stored at %s, after %s", m.note, plan.CreatedAt, m.newest)
		}
		size := plan.Snapshot.Size
		for _, seg := range plan.Segments {
			size += seg.Size
		}
		if plan.Size != size {
			t.Errorf("%s: plan of %d bytes, want %d", m.note, plan.Size, size)
		}
		text := plan.String()
		for _, want := range []string{
			"generation " + m.pos.Generation + "\n",
			"snapshot   " + litestream.FormatIndex(plan.Snapshot.Index) + ", ",
			fmt.Sprintf(", %d segments, ", len(plan.Segments)),
			fmt.Sprintf("total      %d files, %d bytes\n", len(plan.Segments)+1, size),
			"reaches    " + plan.Pos.String() + ", " + plan.CreatedAt.UTC().Format(time.RFC3339Nano) + "\n",
		} {
			if !strings.Contains(text, want) {
				t.Errorf("%s: the plan does not say %q:\n%s", m.note, want, text)
			}
		}
	}
}

// PITFALLS row 23
func (h *history) testTooEarly(t *testing.T) {
	first := firstSnapshot(t, h.client)
	earliest := first.CreatedAt.UTC().Format(time.RFC3339Nano)
	for _, at := range []time.Time{first.CreatedAt.Add(-1), first.CreatedAt.Add(-time.Hour), time.Unix(0, 0)} {
		path := filepath.Join(t.TempDir(), "restored")
		_, err := litestream.RestoreAt(ctx, h.client, path, at, quietRestore())
		if err == nil || !strings.Contains(err.Error(), earliest) {
			t.Errorf("at %s: error %v, want one that names %s", at, err, earliest)
		}
		if errors.Is(err, litestream.ErrNoSnapshots) || errors.Is(err, litestream.ErrNoGeneration) {
			t.Errorf("at %s: %v: a host would start fresh", at, err)
		}
		if ents, err := os.ReadDir(filepath.Dir(path)); err != nil || len(ents) > 0 {
			t.Errorf("at %s: left %v, %v", at, ents, err)
		}
		if _, err := litestream.PlanRestore(ctx, h.client, at); err == nil || !strings.Contains(err.Error(), earliest) {
			t.Errorf("at %s: plan: %v", at, err)
		}
		if _, err := litestream.FindIndexByTimestamp(ctx, h.client, first.Generation, at); err == nil {
			t.Errorf("at %s: an index was found", at)
		}
	}
	if _, pos := restoreAt(t, h.client, first.CreatedAt); pos.Generation != first.Generation {
		t.Errorf("restored to %s at the time of the first snapshot", pos)
	}
}

func firstSnapshot(t testing.TB, client litestream.ReplicaClient) (first litestream.SnapshotInfo) {
	t.Helper()
	generations, err := client.Generations(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, generation := range generations {
		itr, err := client.Snapshots(ctx, generation)
		if err != nil {
			t.Fatal(err)
		}
		infos, err := litestream.SliceSnapshotIterator(itr)
		if err != nil {
			t.Fatal(err)
		}
		for _, info := range infos {
			if first.CreatedAt.IsZero() || info.CreatedAt.Before(first.CreatedAt) {
				first = info
			}
		}
	}
	return first
}

// PITFALLS row 25
func (h *history) testUselessGenerations(t *testing.T) {
	client := fileclient.NewFileReplicaClient(filepath.Join(t.TempDir(), "replica"))
	copyTree(t, h.client.Path(), client.Path())
	const empty, orphan, gap = "00000000000000aa", "ffffffffffffffaa", "ffffffffffffffbb"
	last := h.moments[len(h.moments)-1]
	segment := func(generation string, index int) {
		rc, err := client.WALSegmentReader(ctx, h.moments[0].pos.Truncate())
		if err != nil {
			t.Fatal(err)
		}
		defer rc.Close()
		if _, err := client.WriteWALSegment(ctx, litestream.Pos{Generation: generation, Index: index}, rc); err != nil {
			t.Fatal(err)
		}
	}
	dir, err := client.GenerationDir(empty)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	segment(orphan, 0) // without a snapshot
	rc, err := client.SnapshotReader(ctx, last.pos.Generation, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	if _, err := client.WriteSnapshot(ctx, gap, 0, rc); err != nil {
		t.Fatal(err)
	}
	segment(gap, 0)
	segment(gap, 2) // 1 is missing

	path, pos := restoreAt(t, client, time.Time{})
	h.mustBeAt(t, path, len(h.moments)-1)
	if pos != last.pos {
		t.Errorf("restored to %s, want %s", pos, last.pos)
	}
	for i, m := range h.moments {
		if path, pos := restoreAt(t, client, m.at); pos != m.pos {
			t.Errorf("%s: restored to %s, want %s", m.note, pos, m.pos)
		} else {
			h.mustBeAt(t, path, i)
		}
	}
	plan, err := litestream.PlanRestore(ctx, client, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(plan.String(), "skipped    generation "+gap) {
		t.Errorf("the plan does not say that %s was skipped:\n%s", gap, plan)
	}
	if latest, err := litestream.FindLatestGeneration(ctx, client); err != nil || latest == empty || latest == orphan {
		t.Errorf("latest generation is %s, %v", latest, err)
	}
}

// copyTree copies a directory, with the times of its files.
func copyTree(t testing.TB, from, to string) {
	t.Helper()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	if err := filepath.WalkDir(from, func(name string, ent fs.DirEntry, err error) error {
		if err != nil || ent.IsDir() {
			return err
		}
		info, err := ent.Info()
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, name)
		if err != nil {
			return err
		}
		return os.Chtimes(filepath.Join(to, rel), info.ModTime(), info.ModTime())
	}); err != nil {
		t.Fatal(err)
	}
}

// untidyClient lists in a random order, repeats some of it, and returns bodies
// that yield as wrap says.
type untidyClient struct {
	litestream.ReplicaClient
	wrap func(name string, r io.Reader) io.Reader
}

func (c untidyClient) Generations(ctx context.Context) ([]string, error) {
	names, err := c.ReplicaClient.Generations(ctx)
	return untidy(names), err
}

func (c untidyClient) Snapshots(ctx context.Context, generation string) (litestream.SnapshotIterator, error) {
	itr, err := c.ReplicaClient.Snapshots(ctx, generation)
	if err != nil {
		return nil, err
	}
	infos, err := litestream.SliceSnapshotIterator(itr)
	return litestream.NewSnapshotInfoSliceIterator(untidy(infos)), err
}

func (c untidyClient) WALSegments(ctx context.Context, generation string) (litestream.WALSegmentIterator, error) {
	itr, err := c.ReplicaClient.WALSegments(ctx, generation)
	if err != nil {
		return nil, err
	}
	infos, err := litestream.SliceWALSegmentIterator(itr)
	return litestream.NewWALSegmentInfoSliceIterator(untidy(infos)), err
}

func (c untidyClient) SnapshotReader(ctx context.Context, generation string, index int) (io.ReadCloser, error) {
	rc, err := c.ReplicaClient.SnapshotReader(ctx, generation, index)
	return c.body(litestream.FormatIndex(index)+litestream.SnapshotExt, rc, err)
}

func (c untidyClient) WALSegmentReader(ctx context.Context, pos litestream.Pos) (io.ReadCloser, error) {
	rc, err := c.ReplicaClient.WALSegmentReader(ctx, pos)
	return c.body(litestream.FormatOffset(pos.Offset)+litestream.WALSegmentExt, rc, err)
}

func (c untidyClient) body(name string, rc io.ReadCloser, err error) (io.ReadCloser, error) {
	if err != nil {
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{c.wrap(name, rc), rc}, nil
}

func untidy[T any](a []T) []T {
	a = slices.Concat(a, a[:len(a)/2])
	rand.Shuffle(len(a), func(i, j int) { a[i], a[j] = a[j], a[i] })
	return a
}

// PITFALLS row 27
func (h *history) testShuffled(t *testing.T) {
	for name, wrap := range map[string]func(string, io.Reader) io.Reader{
		"one byte": func(_ string, r io.Reader) io.Reader { return iotest.OneByteReader(r) },
		"half":     func(_ string, r io.Reader) io.Reader { return iotest.HalfReader(r) },
		"data err": func(_ string, r io.Reader) io.Reader { return iotest.DataErrReader(r) },
	} {
		client := untidyClient{h.client, wrap}
		for i := 0; i < len(h.moments); i += 3 {
			m := h.moments[i]
			path, pos := restoreAt(t, client, m.at)
			h.mustBeAt(t, path, i)
			if pos != m.pos {
				t.Errorf("%s, %s: restored to %s, want %s", name, m.note, pos, m.pos)
			}
		}
	}
}

// PITFALLS row 27
func (h *history) testShortBodies(t *testing.T) {
	last := h.moments[len(h.moments)-1]
	plan, err := litestream.PlanRestore(ctx, h.client, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]int64{litestream.FormatIndex(plan.Snapshot.Index) + litestream.SnapshotExt: plan.Snapshot.Size}
	for _, seg := range plan.Segments {
		if seg.Index == last.pos.Index {
			names[litestream.FormatOffset(seg.Offset)+litestream.WALSegmentExt] = seg.Size
		}
	}
	for short, size := range names {
		for _, n := range []int64{0, 3, 7, size / 2, size - 4, size - 1} {
			client := untidyClient{h.client, func(name string, r io.Reader) io.Reader {
				if name == short {
					return io.LimitReader(r, n)
				}
				return r
			}}
			path := filepath.Join(t.TempDir(), "restored")
			_, err := litestream.RestoreLatest(ctx, client, path, quietRestore())
			if err == nil || !strings.Contains(err.Error(), short) {
				t.Errorf("%d bytes of %d of %s: error %v", n, size, short, err)
			}
			if ents, err := os.ReadDir(filepath.Dir(path)); err != nil || len(ents) > 0 {
				t.Errorf("%d bytes of %d of %s: left %v, %v", n, size, short, ents, err)
			}
		}
	}
}

// stored is a generation as the file system shows it.
type stored struct {
	snapshots, segments map[int]time.Time // by index; of segments the first
	first, last         time.Time         // of the snapshots
	firstWAL, lastWAL   time.Time
}

func listStored(t testing.TB, client *fileclient.FileReplicaClient, generation string) stored {
	t.Helper()
	s := stored{snapshots: map[int]time.Time{}, segments: map[int]time.Time{}}
	dir, err := client.GenerationDir(generation)
	if err != nil {
		t.Fatal(err)
	}
	each := func(pattern string, digits func(name string) string, into map[int]time.Time, first, last *time.Time) {
		names, err := filepath.Glob(filepath.Join(dir, filepath.FromSlash(pattern)))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			info, err := os.Stat(name)
			if err != nil {
				t.Fatal(err)
			}
			var index int
			if _, err := fmt.Sscanf(digits(name), "%016x", &index); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			at := info.ModTime()
			if was, ok := into[index]; !ok || at.Before(was) {
				into[index] = at
			}
			if first.IsZero() || at.Before(*first) {
				*first = at
			}
			if at.After(*last) {
				*last = at
			}
		}
	}
	each("snapshots/*.snapshot.lz4", filepath.Base, s.snapshots, &s.first, &s.last)
	each("wal/*/*.wal.lz4", func(name string) string { return filepath.Base(filepath.Dir(name)) }, s.segments, &s.firstWAL, &s.lastWAL)
	return s
}

func maxKey[V any](m map[int]V) int {
	highest := -1
	for k := range m {
		highest = max(highest, k)
	}
	return highest
}

func (h *history) testFind(t *testing.T) {
	latest, err := litestream.FindLatestGeneration(ctx, h.client)
	if want := h.moments[len(h.moments)-1].pos.Generation; err != nil || latest != want {
		t.Errorf("latest generation is %s, %v, want %s", latest, err, want)
	}
	generations, err := h.client.Generations(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, generation := range generations {
		s := listStored(t, h.client, generation)
		for _, find := range []struct {
			name string
			fn   func(context.Context, litestream.ReplicaClient, string) (int, error)
			want int
		}{
			{"snapshot", litestream.FindMaxSnapshotIndexByGeneration, maxKey(s.snapshots)},
			{"wal", litestream.FindMaxWALIndexByGeneration, maxKey(s.segments)},
			{"any", litestream.FindMaxIndexByGeneration, max(maxKey(s.snapshots), maxKey(s.segments))},
		} {
			if got, err := find.fn(ctx, h.client, generation); err != nil || got != find.want {
				t.Errorf("highest index of %s, %s: %d, %v, want %d", generation, find.name, got, err, find.want)
			}
		}
		want := -1
		for index := range maxKey(s.segments) + 3 {
			if _, ok := s.snapshots[index]; ok {
				want = index
			}
			if got, err := litestream.FindSnapshotForIndex(ctx, h.client, generation, index); err != nil || got != want {
				t.Errorf("snapshot for %s/%d: %d, %v, want %d", generation, index, got, err, want)
			}
		}
		if _, err := litestream.FindSnapshotForIndex(ctx, h.client, generation, -1); err == nil {
			t.Errorf("found a snapshot for index -1 of %s", generation)
		}
	}
	for _, m := range h.moments {
		if got, err := litestream.FindIndexByTimestamp(ctx, h.client, m.pos.Generation, m.at); err != nil || got != m.pos.Index {
			t.Errorf("%s: index %d, %v, want %d", m.note, got, err, m.pos.Index)
		}
		s := listStored(t, h.client, m.pos.Generation)
		want := -1
		for index, at := range s.snapshots {
			if !at.After(m.at) {
				want = max(want, index)
			}
		}
		if got, err := h.db.Replicas[0].SnapshotIndexAt(ctx, m.pos.Generation, m.at); err != nil || got != want {
			t.Errorf("%s: snapshot %d, %v, want %d", m.note, got, err, want)
		}
	}
	for _, unknown := range []string{"00000000000000ee"} {
		_, err := litestream.FindMaxIndexByGeneration(ctx, h.client, unknown)
		mustErrorIs(t, err, litestream.ErrNoSnapshots)
		_, err = litestream.FindMaxWALIndexByGeneration(ctx, h.client, unknown)
		mustErrorIs(t, err, litestream.ErrNoWALSegments)
		_, err = h.db.Replicas[0].SnapshotIndexAt(ctx, unknown, time.Time{})
		mustErrorIs(t, err, litestream.ErrNoSnapshots)
	}
}

func (h *history) testTimeBounds(t *testing.T) {
	generations, err := h.client.Generations(ctx)
	if err != nil {
		t.Fatal(err)
	}
	same := func(what string, min, max time.Time, err error, wantMin, wantMax time.Time) {
		t.Helper()
		if err != nil || !min.Equal(wantMin) || !max.Equal(wantMax) {
			t.Errorf("%s: %s to %s, %v, want %s to %s", what, min, max, err, wantMin, wantMax)
		}
	}
	var first, last time.Time
	for _, generation := range generations {
		s := listStored(t, h.client, generation)
		newest := slices.MaxFunc([]time.Time{s.last, s.lastWAL}, time.Time.Compare)
		min, max, err := litestream.SnapshotTimeBounds(ctx, h.client, generation)
		same("snapshots", min, max, err, s.first, s.last)
		min, max, err = litestream.WALTimeBounds(ctx, h.client, generation)
		same("wal", min, max, err, s.firstWAL, s.lastWAL)
		min, max, err = litestream.GenerationTimeBounds(ctx, h.client, generation)
		same("generation", min, max, err, s.first, newest)
		at, err := h.db.Replicas[0].GenerationCreatedAt(ctx, generation)
		same("created", at, at, err, s.first, s.first)
		if first.IsZero() || s.first.Before(first) {
			first = s.first
		}
		if newest.After(last) {
			last = newest
		}
	}
	min, max, err := litestream.ReplicaClientTimeBounds(ctx, h.client)
	same("replica", min, max, err, first, last)
	// The bounds are what can be restored.
	if _, pos := restoreAt(t, h.client, min); pos.Generation != h.moments[0].pos.Generation {
		t.Errorf("restored to %s at the lower bound", pos)
	}
	if _, pos := restoreAt(t, h.client, max); pos != h.moments[len(h.moments)-1].pos {
		t.Errorf("restored to %s at the upper bound", pos)
	}
}

// The last moment of an index is what Restore yields, from any snapshot.
func (h *history) testRestoreIndex(t *testing.T) {
	checked := 0
	for i, m := range h.moments {
		if i+1 == len(h.moments) || h.moments[i+1].pos.Truncate() == m.pos.Truncate() {
			continue
		}
		s := listStored(t, h.client, m.pos.Generation)
		for index := range s.snapshots {
			if index > m.pos.Index {
				continue
			}
			path := filepath.Join(t.TempDir(), "restored")
			if err := litestream.Restore(ctx, h.client, path, m.pos.Generation, index, m.pos.Index, quietRestore()); err != nil {
				t.Errorf("%s from snapshot %d: %v", m.note, index, err)
				continue
			}
			h.mustBeAt(t, path, i)
			checked++
		}
	}
	if checked < 8 {
		t.Errorf("only %d restores were compared", checked)
	}
	gen := h.moments[0].pos.Generation
	beyond := maxKey(listStored(t, h.client, gen).segments) + 1
	var missing *litestream.WALNotFoundError
	err := litestream.Restore(ctx, h.client, filepath.Join(t.TempDir(), "restored"), gen, 0, beyond, quietRestore())
	if !errors.As(err, &missing) || missing.Index != beyond || missing.Generation != gen {
		t.Errorf("an index that does not exist: %v", err)
	}
}

// PITFALLS row 26
func TestHistory_RetentionUnderARunningRestore(t *testing.T) {
	fx := newFixture(t, manually, func(db *litestream.DB) { db.Replicas[0].Retention = 1 })
	fx.db.StopMonitor()
	fx.insert(t, "before")
	mustSync(t, fx.db)
	planned, err := litestream.PlanRestore(ctx, fx.client, time.Time{})
	if err != nil {
		t.Fatal(err)
	}

	reader := replicatest.NewFaultClient(fx.client)
	reader.SetPlans(failIf(func(call replicatest.Call) error {
		if call.Method != "SnapshotReader" || call.N != 1 {
			return nil
		}
		fx.insert(t, "meanwhile")
		if err := fx.db.Checkpoint(ctx, litestream.CheckpointModeTruncate); err != nil {
			return err
		}
		fx.insert(t, "in the next index")
		if _, err := fx.db.Replicas[0].Snapshot(ctx); err != nil {
			return err
		}
		return cmp.Or(fx.db.SyncAndWait(ctx), fx.db.Replicas[0].EnforceRetention(ctx))
	}))
	path := filepath.Join(t.TempDir(), "restored")
	pos, err := litestream.RestoreLatest(ctx, reader, path, quietRestore())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fx.client.SnapshotReader(ctx, planned.Generation, planned.Snapshot.Index); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("the planned snapshot: %v: the test deletes nothing", err)
	}
	if n := countRows(t, path); n != 4 || pos != fx.db.Pos() {
		t.Errorf("restored %d rows to %s, want 4 to %s", n, pos, fx.db.Pos())
	}
	mustEqualRestore(t, fx.db, fx.client)
}

// What WaitPos has waited for can be restored from the replica, and the time
// at which it returns is a moment that includes it.
func TestHistory_WaitPosMeansRestorable(t *testing.T) {
	db := newDB(t, t.TempDir())
	noInterval(db)
	mustOpen(t, db)
	host := openHost(t, db.Path())
	mustExec(t, host, `CREATE TABLE t (x)`)
	client := db.Replicas[0].Client()
	for n := 1; n <= 5; n++ {
		mustExec(t, host, `INSERT INTO t VALUES (?)`, n)
		if err := db.Sync(ctx); err != nil {
			t.Fatal(err)
		}
		pos := db.Pos()
		wait, cancel := context.WithTimeout(ctx, 20*time.Second)
		if err := cmp.Or(db.WaitPos(wait, pos), db.Replicas[0].WaitPos(wait, pos)); err != nil {
			t.Fatal(err)
		}
		cancel()
		path, got := restoreAt(t, client, time.Now())
		if order, err := litestream.ComparePos(got, pos); err != nil || order < 0 {
			t.Errorf("restored to %s, waited for %s (%v)", got, pos, err)
		}
		if rows := countRows(t, path); rows != n {
			t.Errorf("restored %d rows, want %d", rows, n)
		}
		if n == 3 {
			if err := db.Checkpoint(ctx, litestream.CheckpointModeTruncate); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// A snapshot is named by its WAL index, so one that replaced another of the
// same index would be younger, and the moments between them beyond reach.
func TestHistory_SnapshotOfTheSameIndexTakesNoMomentAway(t *testing.T) {
	h := newHistory(t)
	for n := range 4 {
		h.mark(t, fmt.Sprintf("moment-%02d", n))
		h.snapshot(t)
	}
	for i, m := range h.moments {
		path, pos := restoreAt(t, h.client, m.at)
		h.mustBeAt(t, path, i)
		if pos != m.pos {
			t.Errorf("%s: restored to %s, want %s", m.note, pos, m.pos)
		}
	}
	mustEqualRestore(t, h.db, h.client)
}

// A database at rest keeps its WAL index, of which the one snapshot there is
// grows older than Retention.
// PITFALLS row 24
func TestHistory_RetentionOfADatabaseAtRestKeepsTheCutoff(t *testing.T) {
	h := newHistory(t)
	h.mark(t, "moment")
	now := time.Now()
	for _, name := range filesBelow(t, h.client.Path()) {
		if err := os.Chtimes(filepath.Join(h.client.Path(), name), now, now.Add(-3*time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
	keeper := litestream.NewReplica(h.db, "keeper", h.client)
	keeper.Logger = h.db.Logger
	keeper.Retention = 2 * time.Hour
	for range 2 {
		if err := keeper.EnforceRetention(ctx); err != nil {
			t.Fatal(err)
		}
	}
	for _, ago := range []time.Duration{2 * time.Hour, time.Hour, 0} {
		path, pos := restoreAt(t, h.client, now.Add(-ago))
		h.mustBeAt(t, path, 0)
		if pos != h.moments[0].pos {
			t.Errorf("%s ago: restored to %s, want %s", ago, pos, h.moments[0].pos)
		}
	}
}
