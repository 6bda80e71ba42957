package litestream_test

import (
	"bytes"
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"example.com/litestream"
	"example.com/litestream/replicatest"

	"github.com/pierrec/lz4/v4"
)

// hostileFile is a snapshot or segment of a replica that a test damages.
type hostileFile struct {
	snapshot bool
	pos      litestream.Pos
	data     []byte // compressed
	at       time.Time
}

// name is the file's name in the replica, as errors have it.
func (f hostileFile) name() string {
	if f.snapshot {
		return "generations/" + f.pos.Generation + "/snapshots/" + litestream.FormatIndex(f.pos.Index) + litestream.SnapshotExt
	}
	return "generations/" + f.pos.Generation + "/wal/" + litestream.FormatIndex(f.pos.Index) + "/" +
		litestream.FormatOffset(f.pos.Offset) + litestream.WALSegmentExt
}

// v03Name is the name that Litestream v0.3 gave such a file.
func (f hostileFile) v03Name() string {
	if f.snapshot {
		return fmt.Sprintf("generations/%s/snapshots/%08x%s", f.pos.Generation, f.pos.Index, litestream.SnapshotExt)
	}
	return fmt.Sprintf("generations/%s/wal/%08x_%08x%s", f.pos.Generation, f.pos.Index, f.pos.Offset, litestream.WALSegmentExt)
}

func (f hostileFile) write(ctx context.Context, c litestream.ReplicaClient) error {
	var err error
	if f.snapshot {
		_, err = c.WriteSnapshot(ctx, f.pos.Generation, f.pos.Index, bytes.NewReader(f.data))
	} else {
		_, err = c.WriteWALSegment(ctx, f.pos, bytes.NewReader(f.data))
	}
	return err
}

// hostileReplica is a real replica of one database: two generations, several
// indexes and segments in each, pages of 512 bytes.
type hostileReplica struct {
	files  []hostileFile             // in the order of storing
	states map[litestream.Pos][]byte // the database at each position that was ever replicated
	times  map[litestream.Pos]time.Time
	a, b   string // the generations, the older one first
}

// theHostileReplica is made once.
var theHostileReplica struct {
	sync.Once
	*hostileReplica
}

func newHostileReplica(t *testing.T) *hostileReplica {
	theHostileReplica.Do(func() { theHostileReplica.hostileReplica = makeHostileReplica(t) })
	if theHostileReplica.hostileReplica == nil {
		t.Fatal("the replica could not be made")
	}
	return theHostileReplica.hostileReplica
}

func makeHostileReplica(t *testing.T) *hostileReplica {
	h := &hostileReplica{states: map[litestream.Pos][]byte{}, times: map[litestream.Pos]time.Time{}}
	now := time.Date(2024, 5, 1, 12, 0, 0, 0, time.UTC)
	mem := replicatest.NewMemClient()
	mem.Now = func() time.Time { now = now.Add(time.Second); return now }
	client := &recordingClient{ReplicaClient: mem, files: &h.files}

	path := filepath.Join(t.TempDir(), "db")
	host := openHost(t, path, "wal_autocheckpoint(0)")
	host.SetMaxOpenConns(1)
	mustExec(t, host, `PRAGMA journal_mode=DELETE; PRAGMA page_size=512; VACUUM; PRAGMA journal_mode=WAL`)
	mustExec(t, host, `CREATE TABLE t (x)`)
	var db *litestream.DB
	open := func() {
		db = litestream.NewDB(path)
		db.Logger = testLogger(t)
		r := litestream.NewReplica(db, "mem", client)
		r.Logger, r.MonitorEnabled = db.Logger, false
		db.Replicas = append(db.Replicas, r)
		checkAtEnd(t, db)
		mustOpen(t, db)
		db.StopMonitor()
	}
	commit := func() {
		t.Helper()
		mustExec(t, host, `INSERT INTO t VALUES (randomblob(1500))`)
		mustExec(t, host, `UPDATE t SET x = randomblob(100) WHERE rowid = (SELECT abs(random()) % max(rowid) + 1 FROM t)`)
		mustSync(t, db)
		// An index begins with what the checkpoint before it left in the file.
		if begin := db.Pos().Truncate(); h.states[begin] == nil {
			h.states[begin] = readDatabase(t, db)
		}
		h.states[db.Pos()] = checkpointedCopy(t, db)
		h.times[db.Pos()] = now
	}
	restart := func(mode string) {
		t.Helper()
		if err := db.Checkpoint(ctx, mode); err != nil {
			t.Fatal(err)
		}
		commit()
	}
	snapshot := func() {
		t.Helper()
		if _, err := db.Replicas[0].Snapshot(ctx); err != nil {
			t.Fatal(err)
		}
	}

	open()
	commit()
	h.a = db.Pos().Generation
	commit()
	commit()
	restart(litestream.CheckpointModeRestart)
	snapshot()
	commit()
	restart(litestream.CheckpointModeTruncate)
	restart(litestream.CheckpointModeRestart)
	commit()
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(path + litestream.MetaDirSuffix); err != nil {
		t.Fatal(err)
	}
	open()
	commit()
	h.b = db.Pos().Generation
	commit()
	restart(litestream.CheckpointModeRestart)
	commit()
	checkReplica(t, mem)
	mustEqualRestore(t, db, mem)
	if err := errors.Join(host.Close(), db.Close()); err != nil {
		t.Fatal(err)
	}
	for i, f := range h.files {
		t.Logf("file %d: %s, %d bytes", i, f.name(), len(f.data))
	}
	for pos, state := range h.states {
		if string(state[16:18]) != "\x02\x00" {
			t.Fatalf("%s: page size %x", pos, state[16:18])
		}
	}
	if len(h.files) < 12 || h.a == h.b {
		t.Fatalf("%d files, generations %s and %s", len(h.files), h.a, h.b)
	}
	return h
}

// recordingClient notes what is stored, in that order.
type recordingClient struct {
	litestream.ReplicaClient
	files *[]hostileFile
}

func (c *recordingClient) WriteSnapshot(ctx context.Context, generation string, index int, r io.Reader) (litestream.SnapshotInfo, error) {
	var b bytes.Buffer
	info, err := c.ReplicaClient.WriteSnapshot(ctx, generation, index, io.TeeReader(r, &b))
	if err == nil {
		*c.files = append(*c.files, hostileFile{true, info.Pos(), b.Bytes(), info.CreatedAt})
	}
	return info, err
}

func (c *recordingClient) WriteWALSegment(ctx context.Context, pos litestream.Pos, r io.Reader) (litestream.WALSegmentInfo, error) {
	var b bytes.Buffer
	info, err := c.ReplicaClient.WriteWALSegment(ctx, pos, io.TeeReader(r, &b))
	if err == nil {
		*c.files = append(*c.files, hostileFile{false, pos, b.Bytes(), info.CreatedAt})
	}
	return info, err
}

// checkpointedCopy returns what SQLite's own checkpoint makes of a copy of the
// database and its WAL, whose writers rest.
func checkpointedCopy(t *testing.T, db *litestream.DB) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "copy")
	wal, err := os.ReadFile(db.WALPath())
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{path: readDatabase(t, db), path + "-wal": wal} {
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pool, err := sql.Open("sqlite", "file:"+path)
	if err != nil {
		t.Fatal(err)
	}
	var busy, n, m int
	err = pool.QueryRow(`PRAGMA wal_checkpoint(TRUNCATE)`).Scan(&busy, &n, &m)
	if err = errors.Join(err, pool.Close()); err != nil || busy != 0 {
		t.Fatalf("checkpoint: %v, busy %d", err, busy)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// client returns a replica in memory that holds files.
func (h *hostileReplica) client(t *testing.T, files []hostileFile) litestream.ReplicaClient {
	t.Helper()
	c := replicatest.NewMemClient()
	for _, f := range files {
		c.Now = func() time.Time { return f.at }
		if err := f.write(ctx, c); err != nil {
			t.Fatal(err)
		}
	}
	c.Now = nil
	return replicatest.NewFaultClient(c, replicatest.On(replicatest.Fault{Kind: replicatest.Shuffle}))
}

// mutation is one damage to the replica.
type mutation struct {
	what  string
	files []hostileFile

	// names are what an error may name: the files that were touched and those
	// that cannot follow any more.
	names []string

	// unseen says that the format gives no means to notice. Nothing in a
	// snapshot, or in a WAL from its header on, says of which index it is; and
	// nothing in an index says how long the one before was.
	unseen bool
}

// mutations damages every file in every way.
func (h *hostileReplica) mutations() (all []mutation) {
	for i, f := range h.files {
		add := func(what string, files []hostileFile, unseen bool, touched ...hostileFile) {
			m := mutation{what: fmt.Sprintf("%s: %s", f.name(), what), files: files, unseen: unseen}
			for _, t := range touched {
				m.names = append(m.names, t.name())
			}
			all = append(all, m)
		}
		with := func(g hostileFile) []hostileFile { return slices.Replace(slices.Clone(h.files), i, i+1, g) }

		// Flips and cuts: the error names this file and no other.
		n := len(f.data)
		for _, at := range []int{0, 4, 5, 6, 7, 10, 11, 12, n / 3, n / 2, n - 9, n - 5, n - 4, n - 1} {
			g := f
			g.data = bytes.Clone(f.data)
			g.data[at] ^= 1 << (at % 8)
			add(fmt.Sprintf("byte %d flipped", at), with(g), false, f)
		}
		for _, at := range []int{0, 1, 4, 7, 8, n / 2, n - 5, n - 4, n - 1} {
			g := f
			g.data = f.data[:at]
			add(fmt.Sprintf("cut to %d bytes", at), with(g), false, f)
		}
		for what, tail := range map[string][]byte{"rubbish": []byte("rubbish"), "another frame": f.data} {
			g := f
			g.data = slices.Concat(f.data, tail)
			add(what+" behind", with(g), false, f)
		}

		// What is missing shows in what follows.
		touched := append(h.following(f), f)
		add("dropped", slices.Delete(slices.Clone(h.files), i, i+1), h.endsIndex(f), touched...)

		// Under other names, beside the right one or in its place.
		for _, pos := range h.otherNames(f) {
			g := f
			g.pos = pos
			gone := append(h.following(g), touched...)
			add("also as "+g.name(), append(slices.DeleteFunc(slices.Clone(h.files), g.sameName), g), whole(f, g), append(gone, g)...)
			add("moved to "+g.name(), append(slices.DeleteFunc(slices.Clone(h.files), func(e hostileFile) bool {
				return g.sameName(e) || f.sameName(e)
			}), g), whole(f, g) || h.endsIndex(f), append(gone, g)...)
		}

		// Swapped with each other file of its kind; the times stay.
		for j, e := range h.files {
			if e.snapshot != f.snapshot || j <= i {
				continue
			}
			files := slices.Clone(h.files)
			files[i].data, files[j].data = e.data, f.data
			add("swapped with "+e.name(), files, whole(f, e), append(append(h.following(e), touched...), e)...)
		}
		g := f
		if g.snapshot = !f.snapshot; !g.snapshot || g.pos.Offset == 0 {
			g.data = f.data
			add("also as "+g.name(), append(slices.DeleteFunc(slices.Clone(h.files), g.sameName), g), false, append(h.following(g), g)...)
		}
	}
	return all
}

func (f hostileFile) sameName(g hostileFile) bool { return f.snapshot == g.snapshot && f.pos == g.pos }

// whole reports whether both files begin what they are of.
func whole(f, g hostileFile) bool { return f.pos.Offset == 0 && g.pos.Offset == 0 }

// endsIndex reports whether f is the last segment of an index that is not the
// last of its generation.
func (h *hostileReplica) endsIndex(f hostileFile) bool {
	last := h.following(f)
	return !f.snapshot && slices.ContainsFunc(last, func(e hostileFile) bool { return e.pos.Index > f.pos.Index }) &&
		!slices.ContainsFunc(last, func(e hostileFile) bool { return e.pos.Index == f.pos.Index && e.pos.Offset > f.pos.Offset })
}

// following returns the segments that come after a file in its generation, up
// to the first of the next index.
func (h *hostileReplica) following(f hostileFile) (a []hostileFile) {
	for _, e := range h.files {
		if e.snapshot || e.pos.Generation != f.pos.Generation || e.pos.Index < f.pos.Index {
			continue
		}
		if e.pos.Index == f.pos.Index || e.pos.Index == f.pos.Index+1 && e.pos.Offset == 0 {
			a = append(a, e)
		}
	}
	return a
}

// otherNames returns positions that are not a file's: of the neighbours, and
// of nobody.
func (h *hostileReplica) otherNames(f hostileFile) (a []litestream.Pos) {
	add := func(generation string, index int, offset int64) {
		pos := litestream.Pos{Generation: generation, Index: index, Offset: offset}
		if index >= 0 && offset >= 0 && pos != f.pos && !slices.Contains(a, pos) {
			a = append(a, pos)
		}
	}
	p := f.pos
	for _, d := range []int{-1, 1, 2, 1000} {
		add(p.Generation, p.Index+d, p.Offset)
	}
	add(p.Generation, litestream.MaxIndex, p.Offset)
	for _, generation := range []string{h.a, h.b, "00000000deadbeef"} {
		add(generation, p.Index, p.Offset)
		if !f.snapshot {
			add(generation, p.Index, 0)
		}
	}
	if !f.snapshot {
		for _, d := range []int64{-536, -1, 1, 536, 1 << 40} {
			add(p.Generation, p.Index, p.Offset+d)
		}
	}
	return a
}

func hostileDecompress(t testing.TB, b []byte) []byte {
	t.Helper()
	out, err := io.ReadAll(lz4.NewReader(bytes.NewReader(b)))
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func hostileCompress(t testing.TB, r io.Reader) []byte {
	t.Helper()
	var out bytes.Buffer
	zw := lz4.NewWriter(&out)
	err := zw.Apply(lz4.BlockSizeOption(lz4.Block64Kb), lz4.BlockChecksumOption(true), lz4.ChecksumOption(false))
	if err == nil {
		_, err = zw.Write(nil) // begins the frame, also that of nothing
	}
	if err == nil {
		_, err = io.Copy(struct{ io.Writer }{zw}, r)
	}
	if err = cmp.Or(err, zw.Close()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// mentions reports whether an error names one of some files, or an index that
// is missing in the generation of one.
func mentions(err error, names []string) bool {
	var missing *litestream.WALNotFoundError
	for _, name := range names {
		// generations/GENERATION/wal/INDEX/OFFSET.EXT or .../snapshots/INDEX.EXT
		parts := strings.Split(name, "/")
		index, _, _ := strings.Cut(parts[3], ".")
		if strings.Contains(err.Error(), name) || errors.As(err, &missing) && missing.Generation == parts[1] ||
			strings.Contains(err.Error(), parts[1]) && strings.Contains(err.Error(), "index "+index) {
			return true
		}
	}
	return false
}
