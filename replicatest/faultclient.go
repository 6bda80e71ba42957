package replicatest

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"example.com/litestream"
)

// FaultClient passes calls on to another client, counts them, and makes those
// misbehave for which one of its plans returns a [Fault]. Without plans it
// behaves as the client behind it. Construct it with [NewFaultClient]; it is
// safe for concurrent use.
type FaultClient struct {
	client litestream.ReplicaClient

	mu    sync.Mutex // guards what follows; no plan and no client is called under it
	plans []Plan
	calls map[string]int

	// The newest results of listings, for Stale. The key is the generation.
	generations map[string][]string
	snapshots   map[string][]litestream.SnapshotInfo
	segments    map[string][]litestream.WALSegmentInfo
}

var _ litestream.ReplicaClient = (*FaultClient)(nil)

// NewFaultClient returns a client in front of c. For each call the plans are
// asked in their order; the first that returns a fault decides.
func NewFaultClient(c litestream.ReplicaClient, plans ...Plan) *FaultClient {
	return &FaultClient{
		client:      c,
		plans:       plans,
		calls:       map[string]int{},
		generations: map[string][]string{},
		snapshots:   map[string][]litestream.SnapshotInfo{},
		segments:    map[string][]litestream.WALSegmentInfo{},
	}
}

// SetPlans makes other plans decide about every later call, and counts calls
// from 0 again. Without plans all calls pass.
func (c *FaultClient) SetPlans(plans ...Plan) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.plans, c.calls = plans, map[string]int{}
}

// Calls returns how often some methods were called since the last SetPlans;
// without any, all of them but Type. It panics if there is no such method.
func (c *FaultClient) Calls(methods ...string) (n int) {
	mustBeMethods(methods)
	c.mu.Lock()
	defer c.mu.Unlock()
	for method, calls := range c.calls {
		if len(methods) == 0 || slices.Contains(methods, method) {
			n += calls
		}
	}
	return n
}

// Unwrap returns the client behind c.
func (c *FaultClient) Unwrap() litestream.ReplicaClient { return c.client }

// Type returns what the client behind c returns. It is not counted.
func (c *FaultClient) Type() string { return c.client.Type() }

// Generations is affected by all kinds of faults that are of listings.
func (c *FaultClient) Generations(ctx context.Context) ([]string, error) {
	f, err := c.begin(ctx, "Generations", litestream.Pos{})
	if err != nil {
		return nil, err
	}
	names, err := c.client.Generations(ctx)
	if err = f.late(err); err != nil {
		return nil, err
	}
	return alter(c, f, c.generations, names), nil
}

// DeleteGeneration is affected by the kinds of faults that are of all methods.
func (c *FaultClient) DeleteGeneration(ctx context.Context, generation string) error {
	f, err := c.begin(ctx, "DeleteGeneration", litestream.Pos{Generation: generation})
	if err != nil {
		return err
	}
	return f.late(c.client.DeleteGeneration(ctx, generation))
}

// Snapshots is affected by all kinds of faults that are of listings. It reads
// the listing of the client behind c to its end.
func (c *FaultClient) Snapshots(ctx context.Context, generation string) (litestream.SnapshotIterator, error) {
	f, err := c.begin(ctx, "Snapshots", litestream.Pos{Generation: generation})
	if err != nil {
		return nil, err
	}
	itr, err := c.client.Snapshots(ctx, generation)
	if err != nil {
		return nil, err
	}
	infos, err := collect(itr, itr.Snapshot)
	if err == nil {
		if err := f.late(nil); err != nil {
			return nil, err
		}
		infos = alter(c, f, c.snapshots, infos)
		err = f.iterationErr()
	}
	return &snapshotIterator{sliceIterator[litestream.SnapshotInfo]{rest: infos, err: err}}, nil
}

// WriteSnapshot is affected by all kinds of faults that are of writes.
func (c *FaultClient) WriteSnapshot(ctx context.Context, generation string, index int, r io.Reader) (litestream.SnapshotInfo, error) {
	f, err := c.begin(ctx, "WriteSnapshot", litestream.Pos{Generation: generation, Index: index})
	if err != nil {
		return litestream.SnapshotInfo{}, err
	}
	info, err := c.client.WriteSnapshot(ctx, generation, index, f.part(r))
	lost, err := f.finishWrite(ctx, r, err)
	if err != nil {
		return litestream.SnapshotInfo{}, err
	}
	info.Size += lost
	return info, nil
}

// DeleteSnapshot is affected by the kinds of faults that are of all methods.
func (c *FaultClient) DeleteSnapshot(ctx context.Context, generation string, index int) error {
	f, err := c.begin(ctx, "DeleteSnapshot", litestream.Pos{Generation: generation, Index: index})
	if err != nil {
		return err
	}
	return f.late(c.client.DeleteSnapshot(ctx, generation, index))
}

// SnapshotReader is affected by all kinds of faults that are of readers.
func (c *FaultClient) SnapshotReader(ctx context.Context, generation string, index int) (io.ReadCloser, error) {
	f, err := c.begin(ctx, "SnapshotReader", litestream.Pos{Generation: generation, Index: index})
	if err != nil {
		return nil, err
	}
	rc, err := c.client.SnapshotReader(ctx, generation, index)
	return f.reader(rc, err)
}

// WALSegments is affected by all kinds of faults that are of listings. It
// reads the listing of the client behind c to its end.
func (c *FaultClient) WALSegments(ctx context.Context, generation string) (litestream.WALSegmentIterator, error) {
	f, err := c.begin(ctx, "WALSegments", litestream.Pos{Generation: generation})
	if err != nil {
		return nil, err
	}
	itr, err := c.client.WALSegments(ctx, generation)
	if err != nil {
		return nil, err
	}
	infos, err := collect(itr, itr.WALSegment)
	if err == nil {
		if err := f.late(nil); err != nil {
			return nil, err
		}
		infos = alter(c, f, c.segments, infos)
		err = f.iterationErr()
	}
	return &segmentIterator{sliceIterator[litestream.WALSegmentInfo]{rest: infos, err: err}}, nil
}

// WriteWALSegment is affected by all kinds of faults that are of writes.
func (c *FaultClient) WriteWALSegment(ctx context.Context, pos litestream.Pos, r io.Reader) (litestream.WALSegmentInfo, error) {
	f, err := c.begin(ctx, "WriteWALSegment", pos)
	if err != nil {
		return litestream.WALSegmentInfo{}, err
	}
	info, err := c.client.WriteWALSegment(ctx, pos, f.part(r))
	lost, err := f.finishWrite(ctx, r, err)
	if err != nil {
		return litestream.WALSegmentInfo{}, err
	}
	info.Size += lost
	return info, nil
}

// DeleteWALSegments is affected by the kinds of faults that are of all methods.
func (c *FaultClient) DeleteWALSegments(ctx context.Context, a []litestream.Pos) error {
	var first litestream.Pos
	if len(a) > 0 {
		first = a[0]
	}
	f, err := c.begin(ctx, "DeleteWALSegments", first)
	if err != nil {
		return err
	}
	return f.late(c.client.DeleteWALSegments(ctx, a))
}

// WALSegmentReader is affected by all kinds of faults that are of readers.
func (c *FaultClient) WALSegmentReader(ctx context.Context, pos litestream.Pos) (io.ReadCloser, error) {
	f, err := c.begin(ctx, "WALSegmentReader", pos)
	if err != nil {
		return nil, err
	}
	rc, err := c.client.WALSegmentReader(ctx, pos)
	return f.reader(rc, err)
}

// faultyCall is a call and what happens to it.
type faultyCall struct {
	Call
	Fault
}

// begin counts a call, asks the plans, and carries out what happens before the
// call. An error ends it.
func (c *FaultClient) begin(ctx context.Context, method string, pos litestream.Pos) (f faultyCall, err error) {
	c.mu.Lock()
	c.calls[method]++
	f.Call = Call{Ctx: ctx, Method: method, N: c.calls[method], Pos: pos}
	plans := c.plans
	c.mu.Unlock()
	for _, plan := range plans {
		if f.Fault = plan(f.Call); f.Kind != None {
			break
		}
	}
	if !f.Kind.Affects(method) {
		f.Fault = Fault{}
	}
	switch f.Kind {
	case Fail:
		return f, f.err()
	case Hang:
		<-ctx.Done()
		return f, ctx.Err()
	case Delay:
		timer := time.NewTimer(f.Delay)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
	}
	return f, nil
}

// late returns what a call reports that ended with err.
func (f faultyCall) late(err error) error {
	if err == nil && f.Kind == FailLate {
		return f.err()
	}
	return err
}

// part returns what a write stores of r.
func (f faultyCall) part(r io.Reader) io.Reader {
	if f.Kind == Tear || f.Kind == TearSilently {
		return io.LimitReader(r, f.Keep)
	}
	return r
}

// finishWrite returns what a write reports that ended with err, and how many
// bytes of r it says to have stored but has not.
func (f faultyCall) finishWrite(ctx context.Context, r io.Reader, err error) (lost int64, _ error) {
	switch {
	case err != nil:
		return 0, err
	case f.Kind == Tear:
		return 0, f.err()
	case f.Kind == TearSilently:
		return io.Copy(io.Discard, contextReader{ctx, r})
	}
	return 0, f.late(nil)
}

// reader returns what a reader of the client behind becomes.
func (f faultyCall) reader(rc io.ReadCloser, err error) (io.ReadCloser, error) {
	if err != nil {
		return nil, err
	}
	if err := f.late(nil); err != nil {
		return nil, errors.Join(err, rc.Close())
	}
	if f.Kind == Short {
		return &shortReader{ReadCloser: rc, left: f.Keep, err: f.Err}, nil
	}
	return rc, nil
}

// shortReader ends after some bytes.
type shortReader struct {
	io.ReadCloser
	left int64
	err  error // at the end; nil means io.EOF
}

func (r *shortReader) Read(p []byte) (int, error) {
	if r.left <= 0 {
		if r.err != nil {
			return 0, r.err
		}
		return 0, io.EOF
	}
	n, err := r.ReadCloser.Read(p[:min(int64(len(p)), r.left)])
	r.left -= int64(n)
	return n, err
}

// iterationErr is how an iteration ends that met no other error.
func (f faultyCall) iterationErr() error {
	if f.Kind == FailIteration {
		return f.err()
	}
	return nil
}

// collect reads an iterator to its end, and closes it.
func collect[T any](itr interface {
	Next() bool
	Err() error
	Close() error
}, cur func() T) (a []T, err error) {
	for itr.Next() {
		a = append(a, cur())
	}
	return a, errors.Join(itr.Err(), itr.Close())
}

// alter remembers what a listing returns, and returns what becomes of it. It
// takes over the slice.
func alter[T any](c *FaultClient, f faultyCall, seen map[string][]T, infos []T) []T {
	key := f.Pos.Generation
	c.mu.Lock()
	before := seen[key]
	seen[key] = slices.Clone(infos)
	c.mu.Unlock()
	switch f.Kind {
	case Shuffle:
		shuffle(rand.New(rand.NewPCG(uint64(f.N), 0)), infos)
	case Stale:
		return slices.Clone(before)
	case FailIteration:
		return infos[:min(max(f.Keep, 0), int64(len(infos)))]
	}
	return infos
}

// shuffle puts two or more elements into another order.
func shuffle[T any](rng *rand.Rand, a []T) {
	if len(a) < 2 {
		return
	}
	order := rng.Perm(len(a))
	if slices.IsSorted(order) {
		slices.Reverse(order)
	}
	b := slices.Clone(a)
	for i, j := range order {
		a[i] = b[j]
	}
}

// sliceIterator iterates over a slice and ends with an error, if there is one.
type sliceIterator[T any] struct {
	cur   T
	rest  []T
	err   error
	ended bool
}

func (itr *sliceIterator[T]) Next() bool {
	if len(itr.rest) == 0 {
		itr.ended = true
		return false
	}
	itr.cur, itr.rest = itr.rest[0], itr.rest[1:]
	return true
}

func (itr *sliceIterator[T]) Err() error {
	if !itr.ended {
		return nil
	}
	return itr.err
}

func (itr *sliceIterator[T]) Close() error {
	itr.rest = nil
	return nil
}

type snapshotIterator struct {
	sliceIterator[litestream.SnapshotInfo]
}

func (itr *snapshotIterator) Snapshot() litestream.SnapshotInfo { return itr.cur }

type segmentIterator struct {
	sliceIterator[litestream.WALSegmentInfo]
}

func (itr *segmentIterator) WALSegment() litestream.WALSegmentInfo { return itr.cur }
