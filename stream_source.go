package litestream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math"
	"slices"
	"sync"
	"sync/atomic"

	"example.com/litestream/internal/fsys"
)

var _ StreamClient = (*DB)(nil)

const (
	// minStreamBacklog is how many compressed bytes of captured segments are
	// kept for a stream whose reader is behind, beyond DB.ShadowRetentionN. It
	// is the size of the database if that is larger: to go on then costs the
	// reader no more than a snapshot, and as much may be captured while a
	// snapshot is read.
	minStreamBacklog = 64 << 20

	// maxStreamRecord bounds, in compressed bytes, how many captured segments
	// are joined into one record.
	maxStreamRecord = 1 << 20
)

// Stream returns a reader of the database's changes from pos on, for a follower
// in this process or behind a transport. So a DB is a StreamClient itself.
//
// If pos is of the current generation and what follows it is still held in the
// meta directory, the stream goes on from there, else its first record is a
// snapshot. When there is nothing to send yet the first record is a heartbeat.
// All records up to the position at the time of the call, or of the snapshot,
// but the last have StreamRecordFlagPartial.
//
// The snapshot is taken by the first Next, which so lasts as long as the
// database is read, after snapshots of other databases of the process. Until the
// second Next it stands in a file of the meta directory, as large as the
// compressed database.
//
// Next returns io.EOF when the DB begins another generation, an error that
// matches ErrDBClosed when it is closed, ErrStreamTooSlow when the reader holds
// back more than 64 MiB, or more than the database's size, of captured segments,
// and ctx's when that ends. No lock is held while the reader
// waits or reads. The error of Stream matches ErrNoGeneration before the first
// capture, and ErrFollower if the DB is a follower.
func (db *DB) Stream(ctx context.Context, pos Pos) (StreamReader, error) {
	s, err := db.stream(ctx, pos)
	if err != nil {
		return nil, fmt.Errorf("stream %s: %w", db.path, err)
	}
	return s, nil
}

func (db *DB) stream(ctx context.Context, pos Pos) (_ *streamSource, err error) {
	s := newStreamSource(ctx, db)
	err = db.withSession(ctx, func(session *session) (err error) {
		if err := session.capture(); err != nil {
			return err
		}
		s.pageSize = session.pageSize
		if s.target = session.capt.pos; s.target.IsZero() {
			return ErrNoGeneration
		}
		if s.anew = !db.shadow.continues(pos, s.target); s.anew {
			s.lowest.Store(math.MaxInt) // nothing before it is pinned
		} else {
			s.begin(pos)
			s.beat = pos == s.target
		}
		db.streams.add(s) // before anything can be pruned (I7)
		return nil
	})
	if err != nil {
		return nil, errors.Join(notCaptured(err), s.Close())
	}
	return s, nil
}

// continues reports whether the segments behind pos are held up to newest.
func (s *shadowWAL) continues(pos, newest Pos) bool {
	if pos.Generation != newest.Generation || pos.compare(newest) > 0 {
		return false
	}
	segments, err := s.segments(pos.Generation, pos.Index)
	if err != nil {
		return pos == newest
	}
	return pos.Offset == 0 || slices.ContainsFunc(segments, func(seg shadowSegment) bool { return seg.end == pos.Offset })
}

// streamSource is the primary's side of one stream.
type streamSource struct {
	db       *DB
	ctx      context.Context
	cancel   context.CancelFunc
	pageSize int
	notify   chan struct{} // the DB's state changed
	slow     atomic.Bool   // what it needs may be pruned

	// For the reader's goroutine alone.
	anew   bool  // a snapshot comes first, and was not taken yet
	pos    Pos   // everything before it was sent
	target Pos   // records that end before it are partial
	beat   bool  // a heartbeat is due
	err    error // of Next; final

	reading sync.Mutex    // held while body is read or closed: local I/O
	body    io.ReadCloser // of the current record; nil between records

	lowest atomic.Int64 // pos.Index, for prune

	snapshot struct {
		ctx    context.Context // ends with the stream's, or when the DB is closed
		cancel context.CancelFunc

		sync.Mutex // held while it is taken; guards:
		file       fsys.File
	}

	mu struct {
		sync.Mutex // leaf; guards:
		closed     bool
	}
}

func newStreamSource(ctx context.Context, db *DB) *streamSource {
	s := &streamSource{db: db, notify: make(chan struct{}, 1)}
	s.ctx, s.cancel = context.WithCancel(ctx)
	s.snapshot.ctx, s.snapshot.cancel = context.WithCancel(s.ctx)
	return s
}

// begin makes pos the one from which segments are sent.
func (s *streamSource) begin(pos Pos) {
	s.pos = pos
	s.lowest.Store(int64(pos.Index))
}

// PageSize implements StreamReader.
func (s *streamSource) PageSize() int { return s.pageSize }

// Read implements StreamReader.
func (s *streamSource) Read(p []byte) (n int, err error) {
	if n, err = s.readBody(p); err != nil && err != io.EOF && s.ctx.Err() == nil {
		err = fmt.Errorf("stream %s: %w", s.db.path, s.damaged(err))
	}
	return n, err
}

func (s *streamSource) readBody(p []byte) (int, error) {
	s.reading.Lock()
	defer s.reading.Unlock()
	if s.ctx.Err() != nil {
		return 0, s.ended()
	}
	if s.body == nil {
		return 0, io.EOF
	}
	return s.body.Read(p)
}

// Next implements StreamReader.
func (s *streamSource) Next() (*StreamRecordHeader, error) {
	if s.err != nil {
		return nil, s.err
	}
	hdr, err := s.next()
	if err != nil && err != io.EOF {
		err = fmt.Errorf("stream %s: %w", s.db.path, err)
	}
	s.err = err
	return hdr, err
}

func (s *streamSource) next() (*StreamRecordHeader, error) {
	if err := s.setBody(nil); err != nil {
		return nil, err
	}
	if s.anew {
		s.anew = false
		return s.snapshotRecord()
	}
	s.snapshotWasRead()
	for {
		if s.ctx.Err() != nil {
			return nil, s.ended()
		}
		if !s.db.status.Load().open {
			return nil, ErrDBClosed
		}
		if s.beat {
			s.beat = false
			return s.header(StreamRecordTypeWALSegment, 0), nil
		}
		newest := s.db.Pos()
		if newest.Generation != s.pos.Generation {
			return nil, io.EOF
		}
		hdr, err := s.segmentRecord(newest)
		if hdr != nil || err != nil {
			return hdr, err
		}
		select {
		case <-s.notify:
		case <-s.ctx.Done():
		}
	}
}

// ended returns why the stream's context is done.
func (s *streamSource) ended() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.closed {
		return errStreamClosed
	}
	return s.ctx.Err()
}

// setBody ends the current body, if there is one, and begins another. After
// Close there is none.
func (s *streamSource) setBody(body io.ReadCloser) (err error) {
	s.reading.Lock()
	defer s.reading.Unlock()
	if s.body != nil {
		err = s.body.Close()
	}
	if s.body = body; body != nil && s.ctx.Err() != nil {
		err = errors.Join(err, body.Close())
		s.body = nil
	}
	return err
}

func (s *streamSource) header(typ int, size int64) *StreamRecordHeader {
	return &StreamRecordHeader{Type: typ, Generation: s.pos.Generation, Index: s.pos.Index, Offset: s.pos.Offset, Size: size}
}

// partial returns the flags of a record that ends at end.
func (s *streamSource) partial(end Pos) int {
	if end.compare(s.target) < 0 {
		return StreamRecordFlagPartial
	}
	return 0
}

// segmentRecord returns a record of what was captured behind the stream's
// position, nil if nothing was.
func (s *streamSource) segmentRecord(newest Pos) (*StreamRecordHeader, error) {
	for {
		if s.slow.Load() {
			return nil, ErrStreamTooSlow
		}
		segments, err := s.db.shadow.segments(s.pos.Generation, s.pos.Index)
		switch {
		case errors.Is(err, ErrGenerationChanged):
			return nil, io.EOF
		case errors.Is(err, fs.ErrNotExist) && s.pos.Index == newest.Index:
			return nil, nil // nothing was captured of this index yet
		case errors.Is(err, fs.ErrNotExist):
			return nil, ErrStreamTooSlow
		case err != nil:
			return nil, err
		}
		first := slices.IndexFunc(segments, func(seg shadowSegment) bool { return seg.offset >= s.pos.Offset })
		if first >= 0 {
			return s.joinRecord(segments[first:])
		}
		if s.pos.Index >= newest.Index {
			return nil, nil
		}
		s.begin(Pos{Generation: s.pos.Generation, Index: s.pos.Index + 1})
	}
}

// joinRecord makes a record of the first of the segments, and of those behind
// it that fit in. It ends where a partial record must.
func (s *streamSource) joinRecord(segments []shadowSegment) (*StreamRecordHeader, error) {
	if segments[0].offset != s.pos.Offset {
		return nil, fmt.Errorf("no captured segment begins at %s", s.pos)
	}
	n, size := 0, segmentOverhead
	for n < len(segments) && (n == 0 || size+segments[n].size <= maxStreamRecord) {
		size += segments[n].size - segmentOverhead
		n++
		if s.pos.Index == s.target.Index && segments[n-1].end == s.target.Offset {
			break
		}
	}
	// What was damaged since it was captured would stop every follower that
	// comes to it. One that is already there gets it as it is, at no cost.
	history := s.pos.compare(s.target) < 0
	if err := s.db.shadow.verify(s.ctx, s.pos, segments[:n], history); err != nil {
		return nil, s.damaged(err)
	}
	if err := s.setBody(joinSegments(s.db.shadow.sources(s.pos, segments[:n]))); err != nil {
		return nil, err
	}
	hdr := s.header(StreamRecordTypeWALSegment, size)
	s.pos.Offset = segments[n-1].end
	hdr.Flags = s.partial(s.pos)
	return hdr, nil
}

// damaged makes the DB begin a new generation if err says that what was
// captured is no longer there, unless it was pruned since: no reader could ever
// get beyond it.
func (s *streamSource) damaged(err error) error {
	if s.ctx.Err() != nil {
		return s.ended()
	}
	if s.slow.Load() {
		return ErrStreamTooSlow
	}
	if !isDamage(err) {
		return err
	}
	return errors.Join(err, s.db.newGeneration(s.ctx, s.pos.Generation, fmt.Sprintf("shadow wal is damaged behind %s: %v", s.pos, err)))
}

// Close implements StreamReader. It may be called more than once. When it
// returns, no snapshot is being taken.
func (s *streamSource) Close() error {
	s.mu.Lock()
	s.mu.closed = true
	s.mu.Unlock()
	s.cancel()
	err := s.setBody(nil)
	s.snapshot.Lock()
	defer s.snapshot.Unlock()
	s.db.streams.remove(s) // the DB's Close joins the snapshots of those in the set
	return errors.Join(err, s.dropSnapshot())
}

// streamSet holds the streams that are open. The zero value is empty.
type streamSet struct {
	mu sync.Mutex // leaf; guards:
	m  map[*streamSource]struct{}
}

func (set *streamSet) add(s *streamSource) {
	set.mu.Lock()
	defer set.mu.Unlock()
	if set.m == nil {
		set.m = make(map[*streamSource]struct{})
	}
	set.m[s] = struct{}{}
}

func (set *streamSet) remove(s *streamSource) {
	set.mu.Lock()
	defer set.mu.Unlock()
	delete(set.m, s)
}

func (set *streamSet) empty() bool {
	set.mu.Lock()
	defer set.mu.Unlock()
	return len(set.m) == 0
}

// wake lets every reader that waits look again.
func (set *streamSet) wake() {
	set.mu.Lock()
	defer set.mu.Unlock()
	for s := range set.m {
		wake(s.notify)
	}
}

// end lets every reader see that the DB is closed, and ends and joins the
// snapshots that are being taken: they need DB.mu for that.
func (set *streamSet) end() {
	set.mu.Lock()
	streams := slices.Collect(maps.Keys(set.m))
	set.mu.Unlock()
	for _, s := range streams {
		s.snapshot.cancel()
		wake(s.notify)
	}
	for _, s := range streams {
		s.joinSnapshot()
	}
}

// needs returns the lowest index that a stream needs, or limit. One that needs
// so much that tooFar is true of its index is ended.
func (set *streamSet) needs(limit int, tooFar func(index int) bool) int {
	set.mu.Lock()
	streams := slices.Collect(maps.Keys(set.m))
	set.mu.Unlock()
	for _, s := range streams {
		lowest := int(s.lowest.Load())
		if lowest < limit && !s.slow.Load() && tooFar(lowest) {
			s.slow.Store(true)
			wake(s.notify)
		}
		if !s.slow.Load() {
			limit = min(limit, lowest)
		}
	}
	return limit
}

// streamBacklog is how many bytes are kept for a slow stream. DB.mu is held.
func (db *DB) streamBacklog() int64 {
	n := db.backlog
	if s := db.mu.session; s != nil {
		if info, err := s.file.f.Stat(); err == nil {
			n = max(n, info.Size())
		}
	}
	return n
}

// bytesFrom returns how many compressed bytes are held from an index on.
func (s *shadowWAL) bytesFrom(index int) (n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, idx := range s.mu.indexes {
		if idx.index >= index {
			for _, seg := range idx.segments {
				n += seg.size
			}
		}
	}
	return n
}
