package litestream_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"example.com/litestream"
)

// lyingLister changes what listings show.
type lyingLister struct {
	litestream.ReplicaClient
	lie listingLie
}

// listingLie says how; a nil function changes nothing.
type listingLie struct {
	names     func([]string) []string
	snapshots func([]litestream.SnapshotInfo) []litestream.SnapshotInfo
	segments  func([]litestream.WALSegmentInfo) []litestream.WALSegmentInfo
}

func (c lyingLister) Generations(ctx context.Context) ([]string, error) {
	names, err := c.ReplicaClient.Generations(ctx)
	if err == nil && c.lie.names != nil {
		names = c.lie.names(names)
	}
	return names, err
}

func (c lyingLister) Snapshots(ctx context.Context, generation string) (litestream.SnapshotIterator, error) {
	itr, err := c.ReplicaClient.Snapshots(ctx, generation)
	if err != nil || c.lie.snapshots == nil {
		return itr, err
	}
	a, err := litestream.SliceSnapshotIterator(itr)
	return litestream.NewSnapshotInfoSliceIterator(c.lie.snapshots(a)), err
}

func (c lyingLister) WALSegments(ctx context.Context, generation string) (litestream.WALSegmentIterator, error) {
	itr, err := c.ReplicaClient.WALSegments(ctx, generation)
	if err != nil || c.lie.segments == nil {
		return itr, err
	}
	a, err := litestream.SliceWALSegmentIterator(itr)
	return litestream.NewWALSegmentInfoSliceIterator(c.lie.segments(a)), err
}

// lieAboutEach changes each entry of both kinds of listings.
func lieAboutEach(change func(i int, generation *string, size *int64, createdAt *time.Time)) listingLie {
	return listingLie{
		snapshots: func(a []litestream.SnapshotInfo) []litestream.SnapshotInfo {
			for i := range a {
				change(i, &a[i].Generation, &a[i].Size, &a[i].CreatedAt)
			}
			return a
		},
		segments: func(a []litestream.WALSegmentInfo) []litestream.WALSegmentInfo {
			for i := range a {
				change(i, &a[i].Generation, &a[i].Size, &a[i].CreatedAt)
			}
			return a
		},
	}
}

// strangeNames are no generations, but paths that reach elsewhere.
var strangeNames = []string{
	"", ".", "..", "../x", "../../../../tmp", "/", "/etc", "a/b", `..\x`, "0123456789abcde", "0123456789abcdef0",
	"0123456789ABCDEF", "../../0123456789", "0123456789abcd/.", "0123456789abcde\x00", strings.Repeat("../", 1000),
}

// Listings that lie cost a clear error at most.
func TestHostile_ListingsThatLie(t *testing.T) {
	run := newHostileRun(t)
	lies := 0
	for _, tt := range []struct {
		what     string
		restores bool // all the same
		stamps   bool // it lies about times: what was at a moment is not known
		lie      listingLie
	}{
		{"strange generations", true, false, listingLie{names: func(a []string) []string { return append(slices.Clone(strangeNames), a...) }}},
		{"a generation that is not there", true, false, listingLie{names: func(a []string) []string { return append(a, "00000000deadbeef") }}},
		{"generations many times", true, false, listingLie{names: func(a []string) []string { return slices.Repeat(a, 50) }}},
		{"no generations", false, false, listingLie{names: func([]string) []string { return nil }}},
		{"no sizes", true, false, lieAboutEach(func(_ int, _ *string, size *int64, _ *time.Time) { *size = 0 })},
		{"negative sizes", true, false, lieAboutEach(func(_ int, _ *string, size *int64, _ *time.Time) { *size = math.MinInt64 })},
		{"huge sizes", true, false, lieAboutEach(func(_ int, _ *string, size *int64, _ *time.Time) { *size = math.MaxInt64 })},
		{"strange generations in entries", true, false, lieAboutEach(func(i int, generation *string, _ *int64, _ *time.Time) {
			*generation = strangeNames[i%len(strangeNames)]
		})},
		{"no times", true, true, lieAboutEach(func(_ int, _ *string, _ *int64, at *time.Time) { *at = time.Time{} })},
		{"times to come", true, true, lieAboutEach(func(_ int, _ *string, _ *int64, at *time.Time) { *at = time.Unix(1<<40, 0) })},
		{"times backwards", true, true, lieAboutEach(func(i int, _ *string, _ *int64, at *time.Time) { *at = time.Unix(int64(-i), 0) })},
		{"entries many times, backwards", true, false, listingLie{
			snapshots: func(a []litestream.SnapshotInfo) []litestream.SnapshotInfo {
				slices.Reverse(a)
				return slices.Repeat(a, 50)
			},
			segments: func(a []litestream.WALSegmentInfo) []litestream.WALSegmentInfo {
				slices.Reverse(a)
				return slices.Repeat(a, 50)
			},
		}},
		{"negative numbers", true, false, listingLie{
			snapshots: func(a []litestream.SnapshotInfo) []litestream.SnapshotInfo {
				for _, n := range []int{-1, math.MinInt} {
					a = append(a, litestream.SnapshotInfo{Index: n, Size: -1, CreatedAt: time.Now()})
				}
				return a
			},
			segments: func(a []litestream.WALSegmentInfo) []litestream.WALSegmentInfo {
				for _, n := range []int64{-1, math.MinInt64} {
					a = append(a, litestream.WALSegmentInfo{Offset: n}, litestream.WALSegmentInfo{Index: int(n), Size: n})
				}
				return a
			},
		}},
		{"a snapshot that is not there", false, false, listingLie{snapshots: func(a []litestream.SnapshotInfo) []litestream.SnapshotInfo {
			return append(a, litestream.SnapshotInfo{Index: math.MaxInt, CreatedAt: time.Now()})
		}}},
		{"segments that are not there", false, false, listingLie{segments: func(a []litestream.WALSegmentInfo) []litestream.WALSegmentInfo {
			at := time.Now()
			return append(a, litestream.WALSegmentInfo{Index: math.MaxInt, CreatedAt: at},
				litestream.WALSegmentInfo{Index: math.MaxInt, Offset: math.MaxInt64, CreatedAt: at})
		}}},
		{"offsets that are not there", false, false, listingLie{segments: func(a []litestream.WALSegmentInfo) []litestream.WALSegmentInfo {
			return append(a, litestream.WALSegmentInfo{Offset: math.MaxInt64, CreatedAt: time.Now()})
		}}},
		{"one segment of all", false, false, listingLie{segments: func(a []litestream.WALSegmentInfo) []litestream.WALSegmentInfo { return a[len(a)-1:] }}},
	} {
		lies++
		m := mutation{what: tt.what}
		if !tt.restores {
			for _, generation := range []string{run.a, run.b} {
				m.names = append(m.names, "generations/"+generation+"/wal/0", "generations/"+generation+"/snapshots/7")
			}
		}
		if tt.lie.names != nil {
			m.names = nil // there is nothing to name
		}
		c := lyingLister{run.client(t, run.files), tt.lie}
		before := *run
		if tt.stamps {
			run.latest(t, m, c)
			run.index(t, m, c, run.a, 0, 2)
			run.stepwise(t, m, c, run.b, 0, 1)
		} else {
			run.all(t, m, c)
		}
		if n := run.restores - before.restores; tt.restores && run.good-before.good != n {
			t.Errorf("%s: %d of %d restores succeed", tt.what, run.good-before.good, n)
		}
	}
	run.log(t, lies)
}

// endlessListing goes on for ever, and ends the context meanwhile.
type endlessListing struct {
	*testing.T
	n      int
	cancel func()
}

func (itr *endlessListing) Next() bool {
	if itr.n++; itr.n == 5000 {
		itr.cancel()
	}
	if itr.n == 1<<20 {
		itr.Error("an endless listing is read on after the context ended")
		return false
	}
	return true
}

func (itr *endlessListing) Err() error   { return nil }
func (itr *endlessListing) Close() error { return nil }
func (itr *endlessListing) Snapshot() litestream.SnapshotInfo {
	return litestream.SnapshotInfo{Index: itr.n}
}
func (itr *endlessListing) WALSegment() litestream.WALSegmentInfo {
	return litestream.WALSegmentInfo{Index: itr.n}
}

// endlessClient has one endless listing.
type endlessClient struct {
	litestream.ReplicaClient
	method string
	itr    *endlessListing
}

func (c endlessClient) Snapshots(ctx context.Context, generation string) (litestream.SnapshotIterator, error) {
	if c.method == "Snapshots" {
		return c.itr, nil
	}
	return c.ReplicaClient.Snapshots(ctx, generation)
}

func (c endlessClient) WALSegments(ctx context.Context, generation string) (litestream.WALSegmentIterator, error) {
	if c.method == "WALSegments" {
		return c.itr, nil
	}
	return c.ReplicaClient.WALSegments(ctx, generation)
}

// A listing without an end ends with the context.
func TestHostile_EndlessListingEndsWithTheContext(t *testing.T) {
	run := newHostileRun(t)
	files := slices.DeleteFunc(slices.Clone(run.files), func(f hostileFile) bool { return f.pos.Generation != run.a })
	for _, method := range []string{"Snapshots", "WALSegments"} {
		for what, call := range map[string]func(ctx context.Context, c litestream.ReplicaClient, path string) error{
			"RestoreLatest": func(ctx context.Context, c litestream.ReplicaClient, path string) error {
				_, err := litestream.RestoreLatest(ctx, c, path, hostileOptions())
				return err
			},
			"Restore": func(ctx context.Context, c litestream.ReplicaClient, path string) error {
				return litestream.Restore(ctx, c, path, run.a, 0, 1, hostileOptions())
			},
			"FindSnapshotForIndex": func(ctx context.Context, c litestream.ReplicaClient, _ string) error {
				if method == "WALSegments" {
					return context.Canceled // it lists none
				}
				_, err := litestream.FindSnapshotForIndex(ctx, c, run.a, 1)
				return err
			},
		} {
			limited, cancel := context.WithCancel(ctx)
			c := endlessClient{run.client(t, files), method, &endlessListing{T: t, cancel: cancel}}
			run.try(t, mutation{what: "endless " + method}, what, func(path string) (func(litestream.Pos) bool, error) {
				err := call(limited, c, path)
				mustErrorIs(t, err, context.Canceled)
				return nil, err
			})
			cancel()
		}
	}
}

// bomb is a frame that unpacks to head and then n MiB of zeros.
func bomb(t *testing.T, head []byte, n int64) []byte {
	t.Helper()
	return hostileCompress(t, io.MultiReader(bytes.NewReader(head), io.LimitReader(readFunc(func(p []byte) (int, error) {
		clear(p)
		return len(p), nil
	}), n<<20)))
}

// hostileWAL returns a WAL all of whose checksums are right.
func hostileWAL(t *testing.T, pageSize int, fill func(write func(pgno, commit uint32, page []byte))) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "wal")
	w := litestream.NewWALWriter(path, 0o600, pageSize)
	w.Salt0, w.Salt1 = 7, 8
	err := w.Open()
	if err == nil {
		err = w.WriteHeader()
	}
	if err != nil {
		t.Fatal(err)
	}
	fill(func(pgno, commit uint32, page []byte) {
		if err := w.WriteFrame(pgno, commit, page); err != nil {
			t.Fatal(err)
		}
	})
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	return hostileCompress(t, f)
}

// Content that is made to harm: what can be told from a database is an error,
// and nothing takes the memory that it unpacks to.
func TestHostile_Content(t *testing.T) {
	run := newHostileRun(t)
	var snapshot, segment int
	for i, f := range run.files {
		if f.pos.Generation == run.b && f.pos.Index == 0 && f.pos.Offset == 0 {
			if f.snapshot {
				snapshot = i
			} else {
				segment = i
			}
		}
	}
	db := hostileDecompress(t, run.files[snapshot].data)
	edit := func(change func(b []byte) []byte) []byte {
		return hostileCompress(t, bytes.NewReader(change(bytes.Clone(db))))
	}
	page := make([]byte, 512)
	contents := []struct {
		what   string
		index  int // of the file that it takes the place of
		data   []byte
		unseen bool // it is a database, or a WAL
	}{
		{"snapshot of nothing", snapshot, hostileCompress(t, new(bytes.Buffer)), false},
		{"snapshot of text", snapshot, hostileCompress(t, strings.NewReader(strings.Repeat("no database ", 512))), false},
		{"snapshot without compression", snapshot, db, false},
		{"snapshot of zeros", snapshot, hostileCompress(t, bytes.NewReader(make([]byte, len(db)))), false},
		{"snapshot of a header", snapshot, edit(func(b []byte) []byte { return b[:100] }), false},
		{"snapshot of a part of a page", snapshot, edit(func(b []byte) []byte { return b[:len(b)-1] }), false},
		{"snapshot with page size 0", snapshot, edit(func(b []byte) []byte { b[16], b[17] = 0, 0; return b }), false},
		{"snapshot with page size 513", snapshot, edit(func(b []byte) []byte { b[16], b[17] = 2, 1; return b }), false},
		{"snapshot with page size 1024", snapshot, edit(func(b []byte) []byte { b[16], b[17] = 4, 0; return b }), false},
		{"snapshot with page size 65536", snapshot, edit(func(b []byte) []byte { b[16], b[17] = 0, 1; return b }), false},
		{"snapshot with page count 0", snapshot, edit(func(b []byte) []byte { clear(b[28:32]); return b }), true},
		{"snapshot with page count 2^32-1", snapshot, edit(func(b []byte) []byte { binary.BigEndian.PutUint32(b[28:], math.MaxUint32); return b }), true},
		{"snapshot bomb", snapshot, bomb(t, db, 512), true},
		{"snapshot bomb that is no database", snapshot, bomb(t, nil, 512), false},
		{"segment of nothing", segment, hostileCompress(t, new(bytes.Buffer)), false},
		{"segment of zeros", segment, hostileCompress(t, bytes.NewReader(make([]byte, 4096))), false},
		{"segment bomb", segment, bomb(t, nil, 512), false},
		{"segment bomb behind a header", segment, bomb(t, hostileDecompress(t, run.files[segment].data)[:32], 512), false},
		{"segment that is a database", segment, run.files[snapshot].data, false},
		{"wal of another page size", segment, hostileWAL(t, 1024, func(write func(uint32, uint32, []byte)) { write(1, 1, make([]byte, 1024)) }), false},
		{"wal with the highest page", segment, hostileWAL(t, 512, func(write func(uint32, uint32, []byte)) {
			write(math.MaxUint32, math.MaxUint32, page)
		}), false},
		{"wal with a commit of the highest size", segment, hostileWAL(t, 512, func(write func(uint32, uint32, []byte)) {
			write(1, math.MaxUint32-1, page)
		}), false},
		{"wal that never commits", segment, hostileWAL(t, 512, func(write func(uint32, uint32, []byte)) { write(1, 0, page) }), false},
		{"wal of one page many times", segment, hostileWAL(t, 512, func(write func(uint32, uint32, []byte)) {
			for range 700_000 { // 358 MiB
				write(2, 2, page)
			}
		}), true},
	}
	alone := slices.DeleteFunc(slices.Clone(run.files), func(f hostileFile) bool {
		return f.pos.Generation != run.b || f.pos.Index > 0 || f.pos.Offset > 0
	})
	for _, tt := range contents {
		f := run.files[tt.index]
		f.data = tt.data
		files := append(slices.DeleteFunc(slices.Clone(alone), f.sameName), f)
		m := mutation{what: tt.what, files: files, unseen: tt.unseen, names: []string{run.files[segment].name(), run.files[snapshot].name()}}
		before := run.good
		c := run.client(t, files)
		run.latest(t, m, c)
		run.index(t, m, c, run.b, 0, 0)
		run.stepwise(t, m, c, run.b, 0, 0)
		if tt.unseen == (run.good == before) {
			t.Errorf("%s: %d restores succeed", tt.what, run.good-before)
		}
	}
	run.log(t, len(contents))
}

// A body without an end ends with the context, and leaves nothing behind.
func TestHostile_EndlessBodyEndsWithTheContext(t *testing.T) {
	run := newHostileRun(t)
	var f hostileFile
	for _, f = range run.files {
		if f.snapshot && f.pos.Generation == run.b {
			break
		}
	}
	part := bomb(t, hostileDecompress(t, f.data), 1)
	part = part[:len(part)-4] // without its end
	limited, cancel := context.WithCancel(ctx)
	c := endlessBody{run.client(t, run.files), part, cancel}
	run.try(t, mutation{what: "endless snapshot"}, "RestoreLatest", func(path string) (func(litestream.Pos) bool, error) {
		_, err := litestream.RestoreLatest(limited, c, path, hostileOptions())
		mustErrorIs(t, err, context.Canceled)
		return nil, err
	})
}

// endlessBody serves snapshots without an end.
type endlessBody struct {
	litestream.ReplicaClient
	data   []byte
	cancel func()
}

func (c endlessBody) SnapshotReader(context.Context, string, int) (io.ReadCloser, error) {
	blocks := c.data[7:]
	n, rest := 0, c.data
	return io.NopCloser(readFunc(func(p []byte) (int, error) {
		if len(rest) == 0 {
			if n++; n == 200 {
				c.cancel()
			}
			if n == 20_000 {
				return 0, errors.New("an endless body is read on after the context ended")
			}
			rest = blocks
		}
		k := copy(p, rest)
		rest = rest[k:]
		return k, nil
	})), nil
}

// readFunc is an io.Reader.
type readFunc func(p []byte) (int, error)

func (f readFunc) Read(p []byte) (int, error) { return f(p) }
