package litestream

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"time"

	"example.com/litestream/internal/atomicfile"
	"example.com/litestream/internal/fsys"
)

// continuity is what the library can prove about a WAL whose header changed
// since it last looked.
type continuity int

const (
	// unproven: frames may have been committed and overwritten unseen.
	unproven continuity = iota

	// pinned: a read transaction was held since the last capture, so a restart
	// can only have followed the frame at the cursor. See checkpoint.go.
	pinned

	// truncated: like pinned, and our own TRUNCATE completed, after which SQLite
	// draws both salts at random.
	truncated
)

// walView is what a capture sees of the WAL on disk.
type walView struct {
	size   int64
	header walHeader                // zero if the WAL is missing, empty, or its header is torn
	last   [WALFrameHeaderSize]byte // at the place of the cursor's last frame; zero behind the end
	other  bool                     // the last transaction that was captured is not there
}

// walAction is what a walView asks for.
type walAction int

const (
	walNothing       walAction = iota // no committed frames to look for
	walContinue                       // copy committed frames behind the cursor
	walNextIndex                      // the WAL restarted: copy it as the next index
	walNewGeneration                  // continuity is lost
)

// classify decides what the WAL on disk means for a cursor at pos. The reason
// goes with walNewGeneration.
func classify(pos Pos, cur walCursor, v walView, proof continuity) (a walAction, reason string) {
	switch {
	case pos.IsZero():
		return walNewGeneration, "first start"
	case v.header.isZero():
		if proof == unproven {
			return walNewGeneration, "wal is gone"
		}
		return walNothing, ""
	case cur.header.isZero(): // no WAL was seen in this generation yet
		if proof == unproven {
			return walNewGeneration, "wal began unseen"
		}
		return walContinue, ""
	case v.header.raw == cur.header.raw:
		switch {
		case v.size < cur.offset:
			return walNewGeneration, "wal truncated"
		case v.other || cur.offset > WALHeaderSize && v.last != cur.last:
			return walNewGeneration, "wal overwritten"
		}
		return walContinue, ""
	case pos.Index >= MaxIndex:
		return walNewGeneration, "last index reached"
	case proof == truncated, proof == pinned && v.header.salt1 == cur.header.salt1+1:
		return walNextIndex, ""
	default:
		return walNewGeneration, "wal restarted elsewhere"
	}
}

// capturer copies committed frames from the WAL into the shadow WAL. It knows
// nothing of SQLite's locks: whoever calls it keeps the WAL from being
// overwritten meanwhile. It is used by one goroutine at a time.
type capturer struct {
	fs      fsys.FS
	walPath string
	shadow  *shadowWAL
	proof   continuity
	reason  string        // why resume gave up, for the new generation's log line
	names   func() string // draws a generation's name; nil for newGenerationName

	database io.ReaderAt // the database file

	pos    Pos       // everything before it is in the shadow WAL
	cursor walCursor // the same place in the real WAL
	doubt  walCursor // where the last transaction before it began; zero if that is beyond doubt, see unpublished.go
}

// captured tells what one capture did.
type captured struct {
	bytes      int64  // of the WAL, copied
	segments   int    // written
	restarts   int    // of the WAL
	generation string // reason of a new generation, else ""
}

// capture copies everything committed before the call. On an error nothing is
// lost: what was copied stays, and the next call goes on behind it.
func (c *capturer) capture() (got captured, err error) {
	f, view, err := c.look()
	if err != nil {
		return got, fmt.Errorf("read wal: %w", err)
	}
	if f != nil {
		defer func() { err = errors.Join(err, f.Close()) }()
	}
	action, reason := classify(c.pos, c.cursor, view, c.proof)
	switch action {
	case walNothing:
		return got, nil
	case walNewGeneration:
		if c.reason != "" {
			reason = c.reason
		}
		return c.newGeneration(f, view, reason)
	}
	pos, cur := c.pos, c.cursor
	if action == walNextIndex {
		if ok, err := c.endIsCommitted(); err != nil {
			return got, fmt.Errorf("capture: %w", err)
		} else if !ok {
			return c.newGeneration(f, view, "the last transaction was never committed")
		}
		if err := c.shadow.noteEnd(pos); err != nil {
			return got, fmt.Errorf("capture: %w", err)
		}
		pos = Pos{Generation: pos.Generation, Index: pos.Index + 1}
		cur = walCursor{}
	}
	if cur.header.isZero() {
		cur = startWAL(view.header)
	}
	err = c.copyFrames(f, view.size, pos, cur, func(seg shadowSegment, to walScan) {
		if pos.Index != c.pos.Index {
			got.restarts++
		}
		c.shadow.append(pos.Index, seg)
		c.pos = Pos{pos.Generation, pos.Index, to.commit.offset}
		c.cursor, c.doubt = to.commit, to.begun
		if got.restarts > 0 {
			c.proof = pinned
		}
		got.segments++
		got.bytes += seg.end - seg.offset
	})
	if err == nil && c.proof == unproven {
		if err = unchanged(f, view); err == nil {
			c.proof = pinned
		}
	}
	if err != nil {
		return got, fmt.Errorf("capture: %w", err)
	}
	return got, nil
}

// unchanged returns an error if the WAL restarted since v was read. The first
// pin permits a restart of a WAL that is wholly backfilled but not yet
// captured, so what was read of it may not be all that was committed to it.
func unchanged(f fsys.File, v walView) error {
	again, err := readWALView(f, walCursor{}, walCursor{})
	if err != nil {
		return err
	}
	if again.header.raw != v.header.raw {
		return errWALChanged
	}
	return nil
}

// ahead reports whether at least from frames, and fewer than to, committed or
// not, stand in the WAL behind the cursor.
func (c *capturer) ahead(from, to int64) (ok bool, err error) {
	f, v, err := c.look()
	if f == nil || err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if v.header.isZero() {
		return false, nil
	}
	cur := c.cursor
	if v.header.raw != cur.header.raw {
		cur = startWAL(v.header)
	}
	reached := func(n int64) (bool, error) {
		frame := int64(v.header.frameSize())
		if n <= 0 || v.size < cur.offset+n*frame {
			return n <= 0, nil
		}
		var b [WALFrameHeaderSize]byte
		got, err := f.ReadAt(b[:], cur.offset+(n-1)*frame)
		return got == len(b) && v.header.owns(b[:]), ignoreEOF(err)
	}
	if ok, err := reached(from); err != nil || !ok {
		return false, err
	}
	ok, err = reached(to)
	return !ok, err
}

// look opens the WAL, which is nil if it does not exist, and reads what
// classify needs.
func (c *capturer) look() (f fsys.File, v walView, err error) {
	f, err = c.fs.OpenFile(c.walPath, os.O_RDONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, v, nil
	} else if err != nil {
		return nil, v, err
	}
	if v, err = readWALView(f, c.cursor, c.doubt); err != nil {
		return nil, v, errors.Join(err, f.Close())
	}
	return f, v, nil
}

// readWALView reads the header last: then a WAL that restarts meanwhile shows
// its new header, and does not look like one whose last frame was overwritten.
func readWALView(f fsys.File, cur, doubt walCursor) (v walView, err error) {
	info, err := f.Stat()
	if err != nil {
		return v, err
	}
	v.size = info.Size()
	if cur.offset > WALHeaderSize {
		n, err := f.ReadAt(v.last[:], cur.offset-int64(cur.header.frameSize()))
		if err := ignoreEOF(err); err != nil {
			return v, err
		}
		if n < len(v.last) {
			v.last = [WALFrameHeaderSize]byte{}
		}
	}
	if v.other, err = isOverwritten(f, doubt, cur); err != nil {
		return v, err
	}
	var b [WALHeaderSize]byte
	if n, err := f.ReadAt(b[:], 0); n < len(b) {
		return v, ignoreEOF(err)
	}
	if h, err := parseWALHeader(b[:]); err == nil {
		v.header = h // else it is torn: SQLite takes it for an empty WAL, too
	}
	return v, nil
}

func ignoreEOF(err error) error {
	if err == io.EOF {
		return nil
	}
	return err
}

// newGeneration starts over with the WAL as it is: index 0 holds all that can
// still be read of it. The marker is written last (I6).
func (c *capturer) newGeneration(f fsys.File, view walView, reason string) (got captured, err error) {
	names := c.names
	if names == nil {
		names = newGenerationName
	}
	pos := Pos{Generation: names()}
	dir := c.shadow.meta.walDir(pos.Generation)
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("begin generation: %w", err),
				atomicfile.RemoveAll(c.fs, c.shadow.meta.generation(pos.Generation)))
		}
	}()
	if err := atomicfile.MkdirAll(c.fs, dir, metaPath); err != nil {
		return got, err
	}
	var segments []shadowSegment
	var last walScan
	if !view.header.isZero() {
		if err := c.copyFrames(f, view.size, pos, startWAL(view.header), func(seg shadowSegment, to walScan) {
			segments = append(segments, seg)
			last = to
			got.bytes += seg.end - seg.offset
		}); err != nil {
			return captured{}, err
		}
		if err := unchanged(f, view); err != nil {
			return captured{}, err
		}
	}
	if err := c.shadow.publish(pos.Generation, segments); err != nil {
		return captured{}, err
	}
	pos.Offset = last.commit.offset
	c.pos, c.cursor, c.doubt, c.proof, c.reason = pos, last.commit, last.begun, pinned, ""
	got.segments = len(segments)
	got.generation = reason
	if err := c.shadow.removeOthers(pos.Generation); err != nil {
		tracef("%s: %v", c.walPath, err) // tried again by the next prune
	}
	return got, nil
}

// firstChunk is how much a capture reads at least, since most find one small
// transaction.
const firstChunk = 64 << 10

// reach returns how many bytes of frames of this WAL follow cur, before limit,
// in units of the first chunk, at least one, and rounded up. SQLite writes frames
// one behind the other, so that a frame with the salts of this WAL has none of an
// earlier WAL before it.
func reach(f io.ReaderAt, cur walCursor, limit int64) (int64, error) {
	frame := int64(cur.header.frameSize())
	unit := max(firstChunk/frame, 1) * frame
	owned := func(units int64) (bool, error) {
		var b [WALFrameHeaderSize]byte
		n, err := f.ReadAt(b[:], cur.offset+units*unit)
		return n == len(b) && cur.header.owns(b[:]), ignoreEOF(err)
	}
	low, high := int64(0), int64(1) // the first unit that is of an earlier WAL: behind low
	for ; high*unit < limit-cur.offset; low, high = high, 2*high {
		if ok, err := owned(high); err != nil {
			return 0, err
		} else if !ok {
			break
		}
	}
	for low+1 < high {
		mid := (low + high) / 2
		if ok, err := owned(mid); err != nil {
			return 0, err
		} else if ok {
			low = mid
		} else {
			high = mid
		}
	}
	return high * unit, nil
}

// copyFrames writes the committed frames behind cur as segments that begin at
// pos, one for each chunk or large transaction, and calls commit for each. The
// first segment of an index begins with the WAL's header. It ends with the chunk
// in which the WAL, of size limit, ended at the start: a writer that is as fast as
// it could lead it on for ever.
func (c *capturer) copyFrames(f io.ReaderAt, limit int64, pos Pos, cur walCursor, commit func(seg shadowSegment, to walScan)) error {
	buf := chunks.get()
	defer chunks.put(buf)
	frame := cur.header.frameSize()
	grown := (maxChunk - WALHeaderSize) / frame * frame
	ahead, err := reach(f, cur, limit)
	if err != nil {
		return err
	}
	limit = cur.offset + ahead
	size := int(min(ahead, int64(grown)))
	for {
		b := buf[WALHeaderSize : WALHeaderSize+size]
		n, err := f.ReadAt(b, cur.offset)
		if err != nil && err != io.EOF {
			return err
		}
		scan := newWALScan(cur)
		valid, committed := scan.feed(b[:n])
		more := valid == len(b)
		switch {
		case committed > 0:
			// The bytes before b are free for the header.
			raw := buf[WALHeaderSize : WALHeaderSize+committed]
			if pos.Offset == 0 {
				raw = buf[:WALHeaderSize+committed]
				copy(raw, cur.header.raw[:])
			}
			if err := c.writeSegment(&pos, scan, raw, commit); err != nil {
				return err
			}
			cur = scan.commit
		case more && size == grown:
			found, err := findCommit(f, scan.tip)
			if err != nil || found.pages == 0 {
				return err
			}
			if found.begun == scan.tip {
				found.begun = cur // and not where the search for its end did
			}
			if err := c.streamSegment(f, &pos, cur, found, buf, commit); err != nil {
				return err
			}
			cur = found.commit
		}
		if !more || cur.offset >= limit {
			return nil
		}
		size = grown
	}
}

var segmentBuffers = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// writeSegment compresses raw, which ends at to.commit, into the segment at
// pos, and moves pos behind it.
func (c *capturer) writeSegment(pos *Pos, to walScan, raw []byte, commit func(shadowSegment, walScan)) error {
	zbuf := segmentBuffers.Get().(*bytes.Buffer)
	defer segmentBuffers.Put(zbuf)
	zbuf.Reset()
	zw := newSegmentWriter(zbuf)
	_, err := zw.Write(raw)
	err = errors.Join(err, zw.Close())
	releaseSegmentWriter(zw)
	if err != nil {
		return err
	}
	size, err := c.shadow.write(*pos, func(w io.Writer) error {
		_, err := w.Write(zbuf.Bytes())
		return err
	})
	if err != nil {
		return err
	}
	c.committed(pos, to, size, commit)
	return nil
}

func (c *capturer) committed(pos *Pos, to walScan, size int64, commit func(shadowSegment, walScan)) {
	commit(shadowSegment{offset: pos.Offset, end: to.commit.offset, size: size, createdAt: time.Now()}, to)
	pos.Offset = to.commit.offset
}

// findCommit looks from tip on for the end of a transaction that is larger
// than a chunk. Every capture begins at the last commit again: where an earlier
// one ended proves nothing about what stands before, since a shorter
// transaction may have been committed there after a rollback, and the stale
// frames behind it are still those that were seen.
func findCommit(f io.ReaderAt, tip walCursor) (walScan, error) {
	buf := chunks.get()
	defer chunks.put(buf)
	frame := tip.header.frameSize()
	b := buf[:maxChunk/frame*frame]
	scan := newWALScan(tip)
	for {
		n, err := f.ReadAt(b, scan.tip.offset)
		if err != nil && err != io.EOF {
			return scan, err
		}
		valid, committed := scan.feed(b[:n])
		if committed > 0 || valid < len(b) {
			return scan, nil
		}
	}
}

// errWALChanged reports that a WAL did not read the same twice. The next
// capture finds out what it is now.
var errWALChanged = errors.New("wal changed while it was read")

// streamSegment compresses the frames from cur up to the commit that was found
// into one segment at pos, verifying them again as they pass.
func (c *capturer) streamSegment(f io.ReaderAt, pos *Pos, cur walCursor, found walScan, buf []byte, commit func(shadowSegment, walScan)) error {
	frame := cur.header.frameSize()
	b := buf[:maxChunk/frame*frame]
	size, err := c.shadow.write(*pos, func(w io.Writer) (err error) {
		zw := newSegmentWriter(w)
		defer releaseSegmentWriter(zw)
		if pos.Offset == 0 {
			if _, err := zw.Write(cur.header.raw[:]); err != nil {
				return err
			}
		}
		for at := cur; at.offset < found.commit.offset; {
			b := b[:min(int64(len(b)), found.commit.offset-at.offset)]
			if n, err := f.ReadAt(b, at.offset); n < len(b) {
				return errors.Join(errWALChanged, ignoreEOF(err))
			}
			scan := newWALScan(at)
			if valid, _ := scan.feed(b); valid < len(b) {
				return errWALChanged
			}
			if at = scan.tip; at.offset == found.commit.offset && at.last != found.commit.last {
				return errWALChanged
			}
			if _, err := zw.Write(b); err != nil {
				return err
			}
		}
		return zw.Close()
	})
	if err != nil {
		return err
	}
	c.committed(pos, found, size, commit)
	return nil
}

// forget leaves the zero position, from which a new generation begins.
func (c *capturer) forget(reason string) {
	c.pos, c.cursor, c.doubt, c.reason = Pos{}, walCursor{}, walCursor{}, reason
}

// resume restores the position of an earlier run from the shadow WAL and
// proves it against the real WAL, whose checksums are all computed once: a
// frame that a power loss tore in the middle is otherwise invisible. What
// cannot be proven leaves the zero position, from which a new generation
// begins; only a failure to read is an error.
func (c *capturer) resume() (err error) {
	c.forget("")
	c.proof = unproven
	generation, err := c.shadow.readGeneration()
	if err != nil || generation == "" {
		return err
	}
	indexes, err := c.shadow.load(generation)
	if err != nil {
		return err
	}
	if len(indexes) == 0 {
		c.reason = "nothing was captured of the last generation"
		return nil
	}
	last := indexes[len(indexes)-1]
	want, err := c.shadow.readIndex(generation, last)
	if err != nil {
		c.reason = fmt.Sprintf("shadow wal cannot be read: %v", err)
		return nil
	}
	f, view, err := c.look()
	if err != nil {
		return fmt.Errorf("read wal: %w", err)
	}
	if f == nil {
		c.reason = "wal is gone"
		return nil
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if view.header.raw != want.header.raw {
		c.reason = "wal restarted while closed"
		return nil
	}
	scan, err := scanTo(f, view.header, want.offset)
	if err != nil {
		return fmt.Errorf("read wal: %w", err)
	}
	got := scan.tip
	if got.offset != want.offset || got.last != want.last {
		c.reason = "wal is not what was captured"
		return nil
	}
	c.shadow.adopt(generation, indexes, got.offset)
	if err := c.shadow.removeOthers(generation); err != nil {
		tracef("%s: %v", c.walPath, err) // tried again by the next prune
	}
	c.pos = Pos{generation, last.index, got.offset}
	c.cursor, c.doubt = got, scan.begun
	return nil
}

// scanTo verifies a WAL from its header up to an offset. The scan that it
// returns ends before it if a frame on the way is not valid.
func scanTo(f io.ReaderAt, h walHeader, offset int64) (walScan, error) {
	buf := chunks.get()
	defer chunks.put(buf)
	frame := int64(h.frameSize())
	scan := newWALScan(startWAL(h))
	for scan.tip.offset < offset {
		b := buf[:min(maxChunk/frame*frame, offset-scan.tip.offset)]
		n, err := f.ReadAt(b, scan.tip.offset)
		if err != nil && err != io.EOF {
			return scan, err
		}
		if valid, _ := scan.feed(b[:n]); valid < len(b) {
			break
		}
	}
	return scan, nil
}
