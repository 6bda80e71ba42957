package litestream

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"sync"
	"time"
)

// simObject is a file on a simReplica.
type simObject struct {
	data []byte
	at   time.Time
}

// simReplica is a ReplicaClient in memory that keeps the contract, and fails
// as the simulation decides. Only a restore calls it concurrently; it does
// not fail then.
type simReplica struct {
	s  *sim
	id int

	mu        sync.Mutex
	snapshots map[Pos]simObject // offset 0
	segments  map[Pos]simObject
}

func newSimReplica(s *sim, id int) *simReplica {
	return &simReplica{s: s, id: id, snapshots: make(map[Pos]simObject), segments: make(map[Pos]simObject)}
}

func (c *simReplica) Type() string { return "simulated" }

// sortedPos returns the positions of a map that belong to a generation.
func sortedPos(m map[Pos]simObject, generation string) []Pos {
	var a []Pos
	for pos := range m {
		if pos.Generation == generation {
			a = append(a, pos)
		}
	}
	slices.SortFunc(a, func(a, b Pos) int {
		return cmp.Or(cmp.Compare(a.Index, b.Index), cmp.Compare(a.Offset, b.Offset))
	})
	return a
}

// names returns the generations in order of their names.
func (c *simReplica) names() []string {
	set := make(map[string]bool)
	for pos := range c.snapshots {
		set[pos.Generation] = true
	}
	for pos := range c.segments {
		set[pos.Generation] = true
	}
	return slices.Sorted(maps.Keys(set))
}

func (c *simReplica) Generations(context.Context) ([]string, error) {
	if err := c.s.clientFault("generations"); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.names(), nil
}

func (c *simReplica) DeleteGeneration(_ context.Context, generation string) error {
	if err := c.s.clientFault("delete generation"); err != nil {
		return err
	}
	c.s.deleting(c, generation, -1)
	maps.DeleteFunc(c.snapshots, func(pos Pos, _ simObject) bool { return pos.Generation == generation })
	maps.DeleteFunc(c.segments, func(pos Pos, _ simObject) bool { return pos.Generation == generation })
	return nil
}

func (c *simReplica) Snapshots(_ context.Context, generation string) (SnapshotIterator, error) {
	if err := c.s.clientFault("snapshots"); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var a []SnapshotInfo
	for _, pos := range sortedPos(c.snapshots, generation) {
		o := c.snapshots[pos]
		a = append(a, SnapshotInfo{Generation: generation, Index: pos.Index, Size: int64(len(o.data)), CreatedAt: o.at})
	}
	return NewSnapshotInfoSliceIterator(a), nil
}

func (c *simReplica) WALSegments(_ context.Context, generation string) (WALSegmentIterator, error) {
	if err := c.s.clientFault("wal segments"); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var a []WALSegmentInfo
	for _, pos := range sortedPos(c.segments, generation) {
		o := c.segments[pos]
		a = append(a, WALSegmentInfo{generation, pos.Index, pos.Offset, int64(len(o.data)), o.at})
	}
	return NewWALSegmentInfoSliceIterator(a), nil
}

// receive reads a body and fails before, in the middle, or after it was stored.
func (c *simReplica) receive(what string, r io.Reader, store func(b []byte)) error {
	if err := c.s.clientFault(what); err != nil {
		return err
	}
	fault, n := c.s.draw(24), int64(0)
	if fault == 0 {
		n = 10 + c.s.rng.Int64N(200)
	}
	if what == "write snapshot" {
		// Now the database file is read, and its pin given up, by a goroutine of
		// the library. Nothing is drawn here before that has ended.
		c.s.releaseSnapshot()
		defer c.s.holdSnapshot()
	}
	if fault == 0 {
		if _, err := io.CopyN(io.Discard, r, n); err != nil && err != io.EOF {
			return err
		}
		return errInjected
	}
	b, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	if c.s.dead { // killed meanwhile
		return errKilled
	}
	store(b)
	if fault == 1 {
		return errInjected
	}
	return nil
}

func (c *simReplica) WriteSnapshot(_ context.Context, generation string, index int, r io.Reader) (info SnapshotInfo, err error) {
	c.s.between()
	err = c.receive("write snapshot", r, func(b []byte) {
		at := c.s.tick()
		c.snapshots[Pos{Generation: generation, Index: index}] = simObject{b, at}
		info = SnapshotInfo{generation, index, int64(len(b)), at}
	})
	return info, err
}

func (c *simReplica) WriteWALSegment(_ context.Context, pos Pos, r io.Reader) (info WALSegmentInfo, err error) {
	c.s.between()
	err = c.receive("write wal segment", r, func(b []byte) {
		c.s.fail(c.s.checkUpload(pos, b))
		at := c.s.tick()
		c.segments[pos] = simObject{b, at}
		info = WALSegmentInfo{pos.Generation, pos.Index, pos.Offset, int64(len(b)), at}
	})
	return info, err
}

func (c *simReplica) DeleteSnapshot(_ context.Context, generation string, index int) error {
	if err := c.s.clientFault("delete snapshot"); err != nil {
		return err
	}
	c.s.deleting(c, generation, index)
	delete(c.snapshots, Pos{Generation: generation, Index: index})
	return nil
}

func (c *simReplica) DeleteWALSegments(_ context.Context, a []Pos) error {
	for _, pos := range a {
		if err := c.s.clientFault("delete wal segment"); err != nil {
			return err
		}
		delete(c.segments, pos)
	}
	return nil
}

// brokenReader ends with an error.
type brokenReader struct{ io.Reader }

func (r brokenReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if err == io.EOF {
		err = errInjected
	}
	return n, err
}

func (c *simReplica) open(what string, m map[Pos]simObject, pos Pos) (io.ReadCloser, error) {
	if err := c.s.clientFault(what); err != nil {
		return nil, err
	}
	c.mu.Lock()
	o, ok := m[pos]
	c.mu.Unlock()
	if !ok {
		return nil, fmt.Errorf("%s %s: %w", what, pos, fs.ErrNotExist)
	}
	if c.s.draw(30) == 0 {
		return io.NopCloser(brokenReader{bytes.NewReader(o.data[:c.s.rng.IntN(len(o.data))])}), nil
	}
	return io.NopCloser(bytes.NewReader(o.data)), nil
}

func (c *simReplica) SnapshotReader(_ context.Context, generation string, index int) (io.ReadCloser, error) {
	return c.open("read snapshot", c.snapshots, Pos{Generation: generation, Index: index})
}

func (c *simReplica) WALSegmentReader(_ context.Context, pos Pos) (io.ReadCloser, error) {
	return c.open("read wal segment", c.segments, pos)
}
