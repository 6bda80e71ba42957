package replicatest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sort"
	"testing"
	"time"

	"example.com/litestream"
)

// TestClient checks that clients keep every promise of
// [litestream.ReplicaClient]. newClient returns a client of a new, empty
// storage; it is called once for each subtest, and cleans up with t.Cleanup.
//
// What one client stores must be visible to other clients of the same storage.
// That is not checked here, but by [TestStorage].
func TestClient(t *testing.T, newClient func(t testing.TB) litestream.ReplicaClient) {
	runSuite(t, func(t testing.TB) *storage {
		c := newClient(t)
		return &storage{client: c, other: c}
	})
}

// TestStorage is [TestClient] for storage that can be opened more than once.
// newStorage makes a new, empty storage, and returns a function that opens it:
// each call of open returns another client.
func TestStorage(t *testing.T, newStorage func(t testing.TB) (open func() litestream.ReplicaClient)) {
	runSuite(t, func(t testing.TB) *storage {
		open := newStorage(t)
		return &storage{client: open(), other: open()}
	})
}

func runSuite(t *testing.T, newStorage func(testing.TB) *storage) {
	run := func(name string, check func(*testing.T, *storage)) {
		t.Run(name, func(t *testing.T) { check(t, newStorage(t)) })
	}
	for _, k := range []*kind{snapshots, segments} {
		for _, check := range objectChecks {
			run(k.name+"/"+check.name, func(t *testing.T, s *storage) { check.run(t, s, k) })
		}
	}
	for _, check := range storageChecks {
		run(check.name, check.run)
	}
}

// objectChecks are made of snapshots and of segments.
var objectChecks = []struct {
	name string
	run  func(*testing.T, *storage, *kind)
}{
	{"Write", testWrite},
	{"WriteReadsAnyReader", testWriteReadsAnyReader},
	{"WriteEmpty", testWriteEmpty},
	{"WriteLarge", testWriteLarge},
	{"WriteReplaces", testWriteReplaces},
	{"WriteIsInvisibleUntilItEnds", testWriteIsInvisibleUntilItEnds},
	{"FailedWriteLeavesNoPart", testFailedWriteLeavesNoPart},
	{"CancelledWriteLeavesNoPart", testCancelledWriteLeavesNoPart},
	{"WriteDoesNotRetainReader", testWriteDoesNotRetainReader},
	{"Read", testRead},
	{"ReadMissing", testReadMissing},
	{"ReadWhileReplaced", testReadWhileReplaced},
	{"ReadCancelled", testReadCancelled},
	{"List", testList},
	{"ListMissing", testListMissing},
	{"ListTwice", testListTwice},
	{"ListIterator", testListIterator},
	{"ListCancelled", testListCancelled},
	{"Delete", testDelete},
	{"DeleteMissing", testDeleteMissing},
	{"DeleteCancelled", testDeleteCancelled},
	{"Many", testMany},
	{"HighestNumbers", testHighestNumbers},
	{"InvalidNames", testInvalidNames},
	{"ConcurrentWritesOfOne", testConcurrentWritesOfOne},
	{"Concurrent", testConcurrent},
}

// storageChecks are made once.
var storageChecks = []struct {
	name string
	run  func(*testing.T, *storage)
}{
	{"Type", testType},
	{"Generations", testGenerations},
	{"SnapshotsAreNotSegments", testSnapshotsAreNotSegments},
	{"DeleteWALSegments", testDeleteWALSegments},
	{"DeleteGeneration", testDeleteGeneration},
	{"ManyGenerations", testManyGenerations},
}

// Generations that checks use. The first two differ in one digit.
const (
	gen1 = "0123456789abcdef"
	gen2 = "0123456789abcdee"
	gen3 = "ffffffffffffffff"
)

// promptly bounds how long a call may take that has no reason to take long, or
// whose context has ended. Only a client that hangs takes longer.
const promptly = time.Minute

// storage is what one subtest works on.
type storage struct {
	client litestream.ReplicaClient
	other  litestream.ReplicaClient // of the same storage; client again if there is but one
}

// clients returns all clients of the storage.
func (s *storage) clients() []litestream.ReplicaClient {
	if s.other == s.client {
		return []litestream.ReplicaClient{s.client}
	}
	return []litestream.ReplicaClient{s.client, s.other}
}

// object describes a snapshot or a segment. Snapshots have no offset.
type object struct {
	pos       litestream.Pos
	size      int64
	createdAt time.Time
}

func (o object) String() string {
	return fmt.Sprintf("%s, %d bytes, created at %v", describe(o.pos), o.size, o.createdAt)
}

// describe names a position, a strange one too.
func describe(pos litestream.Pos) string {
	return fmt.Sprintf("generation %q, index %d, offset %d", pos.Generation, pos.Index, pos.Offset)
}

// kind is how snapshots or segments are stored.
type kind struct {
	name      string
	highest   litestream.Pos // of gen1
	positions []litestream.Pos
	write     func(ctx context.Context, c litestream.ReplicaClient, pos litestream.Pos, r io.Reader) (object, error)
	open      func(ctx context.Context, c litestream.ReplicaClient, pos litestream.Pos) (io.ReadCloser, error)
	iterate   func(ctx context.Context, c litestream.ReplicaClient, generation string) (iterator, error)
	remove    func(ctx context.Context, c litestream.ReplicaClient, pos litestream.Pos) error

	// at returns the nth of many positions of gen1.
	at func(n int) litestream.Pos
}

// iterator is what the two kinds of iterators have in common.
type iterator interface {
	Next() bool
	Err() error
	Close() error
	object() object
}

type snapshotItr struct{ litestream.SnapshotIterator }

func (itr snapshotItr) object() object { return snapshotObject(itr.Snapshot()) }

func snapshotObject(info litestream.SnapshotInfo) object {
	return object{litestream.Pos{Generation: info.Generation, Index: info.Index}, info.Size, info.CreatedAt}
}

type segmentItr struct{ litestream.WALSegmentIterator }

func (itr segmentItr) object() object { return segmentObject(itr.WALSegment()) }

func segmentObject(info litestream.WALSegmentInfo) object {
	return object{litestream.Pos{Generation: info.Generation, Index: info.Index, Offset: info.Offset}, info.Size, info.CreatedAt}
}

var snapshots = &kind{
	name:      "Snapshot",
	highest:   litestream.Pos{Generation: gen1, Index: maxInt},
	positions: []litestream.Pos{at(gen1, 0, 0), at(gen1, 1, 0), at(gen1, 0x10, 0), at(gen1, 0x7fffffff, 0), at(gen2, 1, 0), at(gen3, 1, 0)},
	at:        func(n int) litestream.Pos { return at(gen1, n, 0) },
	write: func(ctx context.Context, c litestream.ReplicaClient, pos litestream.Pos, r io.Reader) (object, error) {
		info, err := c.WriteSnapshot(ctx, pos.Generation, pos.Index, r)
		return snapshotObject(info), err
	},
	open: func(ctx context.Context, c litestream.ReplicaClient, pos litestream.Pos) (io.ReadCloser, error) {
		return c.SnapshotReader(ctx, pos.Generation, pos.Index)
	},
	iterate: func(ctx context.Context, c litestream.ReplicaClient, generation string) (iterator, error) {
		itr, err := c.Snapshots(ctx, generation)
		return snapshotItr{itr}, err
	},
	remove: func(ctx context.Context, c litestream.ReplicaClient, pos litestream.Pos) error {
		return c.DeleteSnapshot(ctx, pos.Generation, pos.Index)
	},
}

var segments = &kind{
	name:    "WALSegment",
	highest: litestream.Pos{Generation: gen1, Index: maxInt, Offset: maxInt64},
	positions: []litestream.Pos{
		at(gen1, 0, 0), at(gen1, 0, 4152), at(gen1, 1, 0), at(gen1, 1, 0x10), at(gen1, 1, 0x100), at(gen1, 0x10, 0),
		at(gen1, 0x7fffffff, 1<<40), at(gen2, 1, 0), at(gen3, 1, 0x10),
	},
	at: func(n int) litestream.Pos { return at(gen1, n/40, int64(n%40)*4152) },
	write: func(ctx context.Context, c litestream.ReplicaClient, pos litestream.Pos, r io.Reader) (object, error) {
		info, err := c.WriteWALSegment(ctx, pos, r)
		return segmentObject(info), err
	},
	open: func(ctx context.Context, c litestream.ReplicaClient, pos litestream.Pos) (io.ReadCloser, error) {
		return c.WALSegmentReader(ctx, pos)
	},
	iterate: func(ctx context.Context, c litestream.ReplicaClient, generation string) (iterator, error) {
		itr, err := c.WALSegments(ctx, generation)
		return segmentItr{itr}, err
	},
	remove: func(ctx context.Context, c litestream.ReplicaClient, pos litestream.Pos) error {
		return c.DeleteWALSegments(ctx, []litestream.Pos{pos})
	},
}

const (
	maxInt   = int(^uint(0) >> 1)
	maxInt64 = int64(^uint64(0) >> 1)
)

func at(generation string, index int, offset int64) litestream.Pos {
	return litestream.Pos{Generation: generation, Index: index, Offset: offset}
}

// body returns n bytes that belong to seed and compress badly.
func body(seed, n int) []byte {
	b := make([]byte, n)
	x := uint32(seed)*2654435761 + 1
	for i := range b {
		x ^= x << 13
		x ^= x >> 17
		x ^= x << 5
		b[i] = byte(x >> 8)
	}
	return b
}

// plainReader hides all methods but Read.
type plainReader struct{ io.Reader }

// mustWrite stores data.
func (s *storage) mustWrite(t testing.TB, k *kind, pos litestream.Pos, data []byte) object {
	t.Helper()
	o, err := k.write(t.Context(), s.client, pos, plainReader{bytes.NewReader(data)})
	if err != nil {
		t.Fatalf("write %s of %s: %v", k.name, describe(pos), err)
	}
	return o
}

// read returns what is stored at pos.
func read(ctx context.Context, c litestream.ReplicaClient, k *kind, pos litestream.Pos) ([]byte, error) {
	rc, err := k.open(ctx, c, pos)
	if err != nil {
		return nil, err
	}
	if rc == nil {
		return nil, errors.New("neither a reader nor an error")
	}
	data, err := io.ReadAll(rc)
	return data, errors.Join(err, rc.Close())
}

// list returns the sorted objects of a generation.
func list(ctx context.Context, c litestream.ReplicaClient, k *kind, generation string) ([]object, error) {
	itr, err := k.iterate(ctx, c, generation)
	if err != nil {
		return nil, err
	}
	var a []object
	for itr.Next() {
		a = append(a, itr.object())
	}
	sort.SliceStable(a, func(i, j int) bool {
		n, err := litestream.ComparePos(a[i].pos, a[j].pos)
		return err == nil && n < 0
	})
	return a, errors.Join(itr.Err(), itr.Close())
}

// mustHold checks that each client reads and lists exactly what is stored in
// the generations of want, and in those named.
func (s *storage) mustHold(t testing.TB, k *kind, want map[litestream.Pos][]byte, generations ...string) {
	t.Helper()
	counts := map[string]int{}
	for _, g := range generations {
		counts[g] = 0
	}
	for pos := range want {
		counts[pos.Generation]++
	}
	for i, c := range s.clients() {
		for g, n := range counts {
			a, err := list(t.Context(), c, k, g)
			if err != nil {
				t.Errorf("client %d: list generation %q: %v", i+1, g, err)
			}
			if len(a) != n {
				t.Errorf("client %d: generation %q: %d objects are listed, want %d: %v", i+1, g, len(a), n, clip(a))
			}
			for j, o := range a {
				data, ok := want[o.pos]
				switch {
				case !ok || o.pos.Generation != g:
					t.Errorf("client %d: generation %q lists what was not stored there: %s", i+1, g, o)
				case j > 0 && a[j-1].pos == o.pos:
					t.Errorf("client %d: listed twice: %s", i+1, o)
				default:
					o.check(t, o.pos, len(data))
				}
			}
		}
		for pos, data := range want {
			got, err := read(t.Context(), c, k, pos)
			if err != nil {
				t.Errorf("client %d: read %s: %v", i+1, describe(pos), err)
			} else if !bytes.Equal(got, data) {
				t.Errorf("client %d: read %s: %s", i+1, describe(pos), difference(got, data))
			}
		}
	}
}

// mustHoldWhole checks that pos, alone in its generation, holds one of some
// bodies, or nothing, and that listings agree with what is read.
func (s *storage) mustHoldWhole(t testing.TB, k *kind, pos litestream.Pos, bodies ...[]byte) {
	t.Helper()
	for _, fault := range s.parts(t.Context(), k, pos, bodies...) {
		t.Error(fault)
	}
}

// parts returns what mustHoldWhole reports.
func (s *storage) parts(ctx context.Context, k *kind, pos litestream.Pos, bodies ...[]byte) (faults []string) {
	report := func(format string, a ...any) { faults = append(faults, fmt.Sprintf(format, a...)) }
	for i, c := range s.clients() {
		got, err := read(ctx, c, k, pos)
		missing := errors.Is(err, os.ErrNotExist)
		switch {
		case err != nil && !missing:
			report("client %d: read %s: %v", i+1, describe(pos), err)
			continue
		case err == nil && !oneOf(got, bodies):
			report("client %d: %s holds a part: %d bytes", i+1, describe(pos), len(got))
		}
		a, err := list(ctx, c, k, pos.Generation)
		if err != nil {
			report("client %d: list generation %q: %v", i+1, pos.Generation, err)
		}
		if missing && len(a) > 0 {
			report("client %d: listed, but cannot be read: %v", i+1, a[0])
		}
		if !missing && (len(a) != 1 || a[0].pos != pos || a[0].size != int64(len(got))) {
			report("client %d: read %d bytes of %s, but listed are %v", i+1, len(got), describe(pos), clip(a))
		}
	}
	return faults
}

func oneOf(b []byte, bodies [][]byte) bool {
	for _, want := range bodies {
		if bytes.Equal(b, want) {
			return true
		}
	}
	return false
}

// check compares what a call says of an object with the truth.
func (o object) check(t testing.TB, pos litestream.Pos, size int) {
	t.Helper()
	if o.pos != pos {
		t.Errorf("%s is called %s", describe(pos), describe(o.pos))
	}
	if o.size != int64(size) {
		t.Errorf("%s: size %d, want %d, the number of bytes written", describe(pos), o.size, size)
	}
	// Clocks of other machines may be wrong, but not by that much.
	if age := time.Since(o.createdAt); o.createdAt.IsZero() || age > 24*time.Hour || age < -24*time.Hour {
		t.Errorf("%s: created at %v, which is not now", describe(pos), o.createdAt)
	}
}

// clip shortens what an error shows.
func clip[T any](a []T) []T { return a[:min(len(a), 5)] }

func difference(got, want []byte) string {
	n := 0
	for n < min(len(got), len(want)) && got[n] == want[n] {
		n++
	}
	return fmt.Sprintf("%d bytes, want %d; they differ from byte %d on", len(got), len(want), n)
}

// within runs f, and ends the test if it does not return promptly.
func within(t testing.TB, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	timer := time.NewTimer(promptly)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
		t.Fatalf("%s: not back after %v", what, promptly)
	}
}

// sizes returns large, or a smaller number with -short.
func sizes(large, small int) int {
	if testing.Short() {
		return small
	}
	return large
}
