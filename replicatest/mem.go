package replicatest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"sort"
	"sync"
	"time"

	"example.com/litestream"
)

// MemClientType is what [MemClient.Type] returns.
const MemClientType = "mem"

// MemClient is a [litestream.ReplicaClient] that stores a replica in memory,
// for tests. It is as durable as the process. Construct it with
// [NewMemClient]; it is safe for concurrent use.
//
// A generation is listed while it has a snapshot or a segment. Reading stops
// with the context that the reader was opened with.
type MemClient struct {
	// Now tells the time at which something is stored. nil means time.Now. Set
	// it before the first call; it must be safe for concurrent use.
	Now func() time.Time

	mu        sync.RWMutex // guards what follows; the bytes of a file never change
	snapshots map[litestream.Pos]memFile
	segments  map[litestream.Pos]memFile
}

type memFile struct {
	data      []byte
	createdAt time.Time
}

var _ litestream.ReplicaClient = (*MemClient)(nil)

// NewMemClient returns a client of a new, empty replica.
func NewMemClient() *MemClient {
	return &MemClient{snapshots: map[litestream.Pos]memFile{}, segments: map[litestream.Pos]memFile{}}
}

// Clone returns a client of a replica of its own that begins with what c holds
// now, times included. It takes no memory for what both hold.
func (c *MemClient) Clone() *MemClient {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return &MemClient{Now: c.Now, snapshots: maps.Clone(c.snapshots), segments: maps.Clone(c.segments)}
}

// Type returns "mem".
func (c *MemClient) Type() string { return MemClientType }

// Generations lists the generations that hold anything, in alphabetical order.
func (c *MemClient) Generations(ctx context.Context) ([]string, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("list generations: %w", err)
	}
	c.mu.RLock()
	defer c.mu.RUnlock()
	set := map[string]bool{}
	for pos := range c.snapshots {
		set[pos.Generation] = true
	}
	for pos := range c.segments {
		set[pos.Generation] = true
	}
	return slices.Sorted(maps.Keys(set)), nil
}

// DeleteGeneration deletes everything of a generation.
func (c *MemClient) DeleteGeneration(ctx context.Context, generation string) error {
	if err := check(ctx, litestream.Pos{Generation: generation}); err != nil {
		return fmt.Errorf("delete generation: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	of := func(pos litestream.Pos, _ memFile) bool { return pos.Generation == generation }
	maps.DeleteFunc(c.snapshots, of)
	maps.DeleteFunc(c.segments, of)
	return nil
}

// Snapshots iterates over a generation's snapshots in the order of their
// indexes, as they were when it was called.
func (c *MemClient) Snapshots(ctx context.Context, generation string) (litestream.SnapshotIterator, error) {
	if err := check(ctx, litestream.Pos{Generation: generation}); err != nil {
		return nil, fmt.Errorf("list snapshots: %w", err)
	}
	c.mu.RLock()
	defer c.mu.RUnlock()
	var a []litestream.SnapshotInfo
	for pos, f := range c.snapshots {
		if pos.Generation == generation {
			a = append(a, f.snapshotInfo(pos))
		}
	}
	sort.Sort(litestream.SnapshotInfoSlice(a))
	return litestream.NewSnapshotInfoSliceIterator(a), nil
}

// WriteSnapshot stores what it reads from r as the snapshot of index. It looks
// at ctx before each read and before it stores.
func (c *MemClient) WriteSnapshot(ctx context.Context, generation string, index int, r io.Reader) (litestream.SnapshotInfo, error) {
	pos := litestream.Pos{Generation: generation, Index: index}
	f, err := c.write(ctx, c.snapshots, pos, r)
	if err != nil {
		return litestream.SnapshotInfo{}, fmt.Errorf("write snapshot: %w", err)
	}
	return f.snapshotInfo(pos), nil
}

// DeleteSnapshot deletes a snapshot.
func (c *MemClient) DeleteSnapshot(ctx context.Context, generation string, index int) error {
	pos := litestream.Pos{Generation: generation, Index: index}
	if err := check(ctx, pos); err != nil {
		return fmt.Errorf("delete snapshot: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.snapshots, pos)
	return nil
}

// SnapshotReader returns a snapshot as it is now, whatever becomes of it.
func (c *MemClient) SnapshotReader(ctx context.Context, generation string, index int) (io.ReadCloser, error) {
	rc, err := c.open(ctx, c.snapshots, litestream.Pos{Generation: generation, Index: index})
	if err != nil {
		return nil, fmt.Errorf("read snapshot: %w", err)
	}
	return rc, nil
}

// WALSegments iterates over a generation's segments in the order of their
// positions, as they were when it was called.
func (c *MemClient) WALSegments(ctx context.Context, generation string) (litestream.WALSegmentIterator, error) {
	if err := check(ctx, litestream.Pos{Generation: generation}); err != nil {
		return nil, fmt.Errorf("list wal segments: %w", err)
	}
	c.mu.RLock()
	defer c.mu.RUnlock()
	var a []litestream.WALSegmentInfo
	for pos, f := range c.segments {
		if pos.Generation == generation {
			a = append(a, f.segmentInfo(pos))
		}
	}
	sort.Sort(litestream.WALSegmentInfoSlice(a))
	return litestream.NewWALSegmentInfoSliceIterator(a), nil
}

// WriteWALSegment stores what it reads from r as the segment that begins at
// pos. It looks at ctx before each read and before it stores.
func (c *MemClient) WriteWALSegment(ctx context.Context, pos litestream.Pos, r io.Reader) (litestream.WALSegmentInfo, error) {
	f, err := c.write(ctx, c.segments, pos, r)
	if err != nil {
		return litestream.WALSegmentInfo{}, fmt.Errorf("write wal segment: %w", err)
	}
	return f.segmentInfo(pos), nil
}

// DeleteWALSegments deletes segments, all at once. If one of a is invalid it
// deletes none.
func (c *MemClient) DeleteWALSegments(ctx context.Context, a []litestream.Pos) error {
	for _, pos := range a {
		if err := check(ctx, pos); err != nil {
			return fmt.Errorf("delete wal segments: %w", err)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, pos := range a {
		delete(c.segments, pos)
	}
	return nil
}

// WALSegmentReader returns a segment as it is now, whatever becomes of it.
func (c *MemClient) WALSegmentReader(ctx context.Context, pos litestream.Pos) (io.ReadCloser, error) {
	rc, err := c.open(ctx, c.segments, pos)
	if err != nil {
		return nil, fmt.Errorf("read wal segment: %w", err)
	}
	return rc, nil
}

func (c *MemClient) write(ctx context.Context, files map[litestream.Pos]memFile, pos litestream.Pos, r io.Reader) (memFile, error) {
	if err := check(ctx, pos); err != nil {
		return memFile{}, err
	}
	var b bytes.Buffer
	if _, err := b.ReadFrom(contextReader{ctx, r}); err != nil {
		return memFile{}, fmt.Errorf("%s: %w", pos, err)
	}
	if err := ctx.Err(); err != nil {
		return memFile{}, fmt.Errorf("%s: %w", pos, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now
	if c.Now != nil {
		now = c.Now
	}
	f := memFile{data: bytes.Clone(b.Bytes()), createdAt: now().UTC()}
	files[pos] = f
	return f, nil
}

func (c *MemClient) open(ctx context.Context, files map[litestream.Pos]memFile, pos litestream.Pos) (io.ReadCloser, error) {
	if err := check(ctx, pos); err != nil {
		return nil, err
	}
	c.mu.RLock()
	defer c.mu.RUnlock()
	f, ok := files[pos]
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: pos.String(), Err: fs.ErrNotExist}
	}
	r := bytes.NewReader(f.data)
	return &memReader{contextReader: contextReader{ctx, r}, name: pos.String()}, nil
}

// memReader reads a file. It is not safe for concurrent use.
type memReader struct {
	contextReader
	name   string
	closed bool
}

func (r *memReader) Read(p []byte) (int, error) {
	if r.closed {
		return 0, &fs.PathError{Op: "read", Path: r.name, Err: fs.ErrClosed}
	}
	return r.contextReader.Read(p)
}

func (r *memReader) Close() error {
	if r.closed {
		return &fs.PathError{Op: "close", Path: r.name, Err: fs.ErrClosed}
	}
	r.closed = true
	return nil
}

func (f memFile) snapshotInfo(pos litestream.Pos) litestream.SnapshotInfo {
	return litestream.SnapshotInfo{
		Generation: pos.Generation, Index: pos.Index, Size: int64(len(f.data)), CreatedAt: f.createdAt,
	}
}

func (f memFile) segmentInfo(pos litestream.Pos) litestream.WALSegmentInfo {
	return litestream.WALSegmentInfo{
		Generation: pos.Generation, Index: pos.Index, Offset: pos.Offset, Size: int64(len(f.data)), CreatedAt: f.createdAt,
	}
}

// check validates a call's arguments and looks at its context.
func check(ctx context.Context, pos litestream.Pos) error {
	switch {
	case !litestream.IsGenerationName(pos.Generation):
		return fmt.Errorf("generation %q: want %d lowercase hex digits", pos.Generation, litestream.GenerationNameLen)
	case pos.Index < 0:
		return fmt.Errorf("index %d is negative", pos.Index)
	case pos.Offset < 0:
		return fmt.Errorf("offset %d is negative", pos.Offset)
	}
	return ctx.Err()
}

// contextReader ends with its context's error.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (r contextReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}
