package litestream

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
	"sync"
	"time"

	"example.com/litestream/internal/atomicfile"
	"example.com/litestream/internal/fsys"
)

// metaDir is the directory beside the database in which the library keeps its
// own files. The paths in it:
//
//	generation                                  name of the current generation
//	position                                    for other processes to read
//	lock                                        see managerLock
//	follower                                    see storedState
//	lineage                                     see lineage
//	generations/GENERATION/wal/INDEX/OFFSET.wal.lz4
//	generations/GENERATION/ends                 see indexEnds
type metaDir string

func (m metaDir) generationName() string { return filepath.Join(string(m), "generation") }
func (m metaDir) position() string       { return filepath.Join(string(m), "position") }
func (m metaDir) lock() string           { return filepath.Join(string(m), "lock") }
func (m metaDir) follower() string       { return filepath.Join(string(m), "follower") }
func (m metaDir) lineage() string        { return filepath.Join(string(m), "lineage") }
func (m metaDir) generations() string    { return filepath.Join(string(m), "generations") }
func (m metaDir) generation(generation string) string {
	return filepath.Join(m.generations(), generation)
}
func (m metaDir) ends(generation string) string {
	return filepath.Join(m.generation(generation), "ends")
}
func (m metaDir) walDir(generation string) string {
	return filepath.Join(m.generation(generation), WALDirName)
}
func (m metaDir) indexDir(generation string, index int) string {
	return filepath.Join(m.walDir(generation), FormatIndex(index))
}
func (m metaDir) segment(pos Pos) string {
	return filepath.Join(m.indexDir(pos.Generation, pos.Index), FormatOffset(pos.Offset)+WALSegmentExt)
}

// The library's own files are for the database's user alone.
var (
	metaFile = atomicfile.Options{Mode: 0o600, Uid: -1, Gid: -1}
	metaPath = atomicfile.Options{Mode: 0o700, Uid: -1, Gid: -1}
)

// shadowSegment is one captured piece of a WAL.
type shadowSegment struct {
	offset, end int64 // in the WAL; end is 0 while only the file name is known
	size        int64 // compressed, in bytes
	createdAt   time.Time
	loaded      bool // written before this open: a power loss may have torn it
}

// shadowIndex holds the segments of one WAL index, which tile it from 0 (I1).
type shadowIndex struct {
	index    int
	segments []shadowSegment
}

// shadowWAL is the local copy of the captured WAL of the current generation,
// from which replicas read. It is a cache of the real WAL and is not synced:
// what a power loss tears is noticed by its reader or at the next open.
//
// One goroutine writes (the holder of DB.mu); any number read.
type shadowWAL struct {
	fs   fsys.FS
	meta metaDir

	rubbish []string // directories that could not be removed yet; the writer's

	mu struct {
		sync.Mutex // leaf; guards:
		generation string
		indexes    []shadowIndex // ascending and dense; only the newest may be empty
	}
}

func newShadowWAL(fsy fsys.FS, meta metaDir) *shadowWAL { return &shadowWAL{fs: fsy, meta: meta} }

// readGeneration returns the name in the marker, or "" if there is none that
// can be used.
func (s *shadowWAL) readGeneration() (string, error) {
	b, err := readFile(s.fs, s.meta.generationName())
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	} else if err != nil {
		return "", fmt.Errorf("read generation: %w", err)
	}
	if name := strings.TrimSuffix(string(b), "\n"); IsGenerationName(name) {
		return name, nil
	}
	return "", nil // torn by a power loss
}

func readFile(fsy fsys.FS, name string) (_ []byte, err error) {
	f, err := fsy.OpenFile(name, os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return io.ReadAll(io.LimitReader(f, 1<<20))
}

// load reads the list of segments of a generation from disk, for adopt, which
// gets to know the end of the newest. Directories from before a gap, in the
// indexes or at the end of one, are not listed, since nobody can use them, and go
// with the next prune.
func (s *shadowWAL) load(generation string) (indexes []shadowIndex, err error) {
	ends, err := s.readEnds(generation)
	if err != nil {
		return nil, fmt.Errorf("load shadow wal: %w", err)
	}
	var seen, gone []string
	ents, err := s.fs.ReadDir(s.meta.walDir(generation))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("load shadow wal: %w", err)
	}
	for _, ent := range ents { // sorted by name, so by index
		index, err := ParseIndex(ent.Name())
		if err != nil || !ent.IsDir() {
			continue
		}
		segments, err := s.loadIndex(generation, index)
		if err != nil {
			return nil, fmt.Errorf("load shadow wal: %w", err)
		}
		if len(segments) == 0 {
			continue // a crash came before its first segment
		}
		if seen = append(seen, s.meta.indexDir(generation, index)); segments[0].offset != 0 {
			indexes, gone = nil, seen
			continue
		}
		if n := len(indexes); n > 0 {
			whole, err := s.findEnd(generation, indexes[n-1], ends)
			if err != nil {
				return nil, fmt.Errorf("load shadow wal: %w", err)
			}
			if !whole || indexes[n-1].index != index-1 {
				indexes, gone = nil, seen[:len(seen)-1]
			}
		}
		indexes = append(indexes, shadowIndex{index: index, segments: segments})
	}
	s.rubbish = gone
	return indexes, nil
}

// adopt makes a generation the current one whose list was loaded, and whose
// newest segment ends at end.
func (s *shadowWAL) adopt(generation string, indexes []shadowIndex, end int64) {
	segments := indexes[len(indexes)-1].segments
	segments[len(segments)-1].end = end
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.generation, s.mu.indexes = generation, indexes
}

// findEnd completes the newest segment of an index that was loaded and has
// ended. It returns false if a power loss tore that segment, or took others
// that came after it.
func (s *shadowWAL) findEnd(generation string, idx shadowIndex, ends indexEnds) (whole bool, err error) {
	last := &idx.segments[len(idx.segments)-1]
	cur, err := s.readEnd(Pos{generation, idx.index, last.offset})
	var perr *fs.PathError
	if errors.As(err, &perr) {
		return false, err
	}
	last.end = cur.offset
	return err == nil && ends.has(idx.index, last.end), nil
}

func (s *shadowWAL) loadIndex(generation string, index int) ([]shadowSegment, error) {
	dir := s.meta.indexDir(generation, index)
	if err := atomicfile.Sweep(s.fs, dir); err != nil {
		return nil, err
	}
	ents, err := s.fs.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var segments []shadowSegment
	for _, ent := range ents {
		name, ok := strings.CutSuffix(ent.Name(), WALSegmentExt)
		offset, err := ParseOffset(name)
		if !ok || err != nil || ent.IsDir() {
			continue
		}
		info, err := ent.Info()
		if err != nil {
			return nil, err
		}
		if n := len(segments); n > 0 {
			segments[n-1].end = offset
		}
		segments = append(segments, shadowSegment{offset: offset, size: info.Size(), createdAt: info.ModTime(), loaded: true})
	}
	return segments, nil
}

// last returns the position and size of the newest segment.
func (s *shadowWAL) last() (pos Pos, seg shadowSegment, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := len(s.mu.indexes)
	if n == 0 {
		return pos, seg, false
	}
	idx := s.mu.indexes[n-1]
	seg = idx.segments[len(idx.segments)-1]
	return Pos{s.mu.generation, idx.index, seg.offset}, seg, true
}

// publish makes generation the current one, with nothing but segments of
// index 0, which are on disk (I6).
func (s *shadowWAL) publish(generation string, segments []shadowSegment) error {
	if err := atomicfile.WriteBytes(s.fs, s.meta.generationName(), metaFile, []byte(generation+"\n")); err != nil {
		return fmt.Errorf("write generation: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.generation, s.mu.indexes = generation, nil
	if len(segments) > 0 {
		s.mu.indexes = []shadowIndex{{index: 0, segments: segments}}
	}
	return nil
}

// write stores a segment, which is not listed before append is called. fill
// writes the segment's bytes.
func (s *shadowWAL) write(pos Pos, fill func(w io.Writer) error) (size int64, err error) {
	opt := metaFile
	store := func() error {
		return atomicfile.Write(s.fs, s.meta.segment(pos), opt, func(f fsys.File) error {
			cw := countingWriter{w: f}
			err := fill(&cw)
			size = cw.n
			return err
		})
	}
	err = store()
	if errors.Is(err, fs.ErrNotExist) { // the first of its index
		if err = atomicfile.MkdirAll(s.fs, s.meta.indexDir(pos.Generation, pos.Index), metaPath); err == nil {
			err = store()
		}
	}
	if err != nil {
		return 0, fmt.Errorf("write shadow segment %s: %w", pos, err)
	}
	return size, nil
}

type countingWriter struct {
	w io.Writer
	n int64
}

func (w *countingWriter) Write(p []byte) (int, error) {
	n, err := w.w.Write(p)
	w.n += int64(n)
	return n, err
}

// append lists a segment of the current generation that is on disk.
func (s *shadowWAL) append(index int, seg shadowSegment) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := len(s.mu.indexes)
	if n == 0 || s.mu.indexes[n-1].index != index {
		s.mu.indexes = append(s.mu.indexes, shadowIndex{index: index})
		n++
	}
	idx := &s.mu.indexes[n-1]
	idx.segments = append(idx.segments, seg)
}

// segments returns the segments of one index of a generation, oldest first.
// An error matches ErrGenerationChanged, or fs.ErrNotExist if the index was
// pruned or never written. The caller must not change the slice.
func (s *shadowWAL) segments(generation string, index int) ([]shadowSegment, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.generation != generation {
		return nil, fmt.Errorf("%w: %s is no longer current", ErrGenerationChanged, generation)
	}
	i, ok := slices.BinarySearchFunc(s.mu.indexes, index, func(x shadowIndex, index int) int { return x.index - index })
	if !ok {
		return nil, fmt.Errorf("shadow wal index %s/%s: %w", generation, FormatIndex(index), fs.ErrNotExist)
	}
	a := s.mu.indexes[i].segments
	return a[:len(a):len(a)], nil
}

// indexNumbers returns the indexes that are held of a generation.
func (s *shadowWAL) indexNumbers(generation string) []int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.generation != generation {
		return nil
	}
	a := make([]int, len(s.mu.indexes))
	for i, idx := range s.mu.indexes {
		a[i] = idx.index
	}
	return a
}

// open returns a segment's compressed bytes.
func (s *shadowWAL) open(pos Pos) (io.ReadCloser, error) {
	f, err := s.fs.OpenFile(s.meta.segment(pos), os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	return f, nil
}

// source returns a segment for joinSegments.
func (s *shadowWAL) source(pos Pos, seg shadowSegment) segmentSource {
	pos.Offset = seg.offset
	return segmentSource{size: seg.size, open: func() (io.ReadCloser, error) { return s.open(pos) }}
}

// sources returns consecutive segments for joinSegments.
func (s *shadowWAL) sources(pos Pos, segments []shadowSegment) []segmentSource {
	a := make([]segmentSource, len(segments))
	for i, seg := range segments {
		a[i] = s.source(pos, seg)
	}
	return a
}

// verify decompresses those of the segments that an earlier run wrote, or all.
// Their block checksums, and their length, tell whether they are whole: the
// error of one that is not matches errNotJoinable.
func (s *shadowWAL) verify(ctx context.Context, pos Pos, segments []shadowSegment, all bool) error {
	for _, seg := range segments {
		if !seg.loaded && !all {
			continue
		}
		pos.Offset = seg.offset
		rc, err := s.open(pos)
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%w: %w", errNotJoinable, err)
		} else if err != nil {
			return err
		}
		zr := newFrameReader(rc)
		n, err := io.Copy(writerFunc(func(b []byte) (int, error) { return len(b), ctx.Err() }), zr)
		if cerr := zr.Close(); cerr != nil {
			return cerr
		}
		var perr *fs.PathError
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.As(err, &perr):
			return err
		case err != nil || n != seg.end-seg.offset:
			return fmt.Errorf("%w: shadow segment %s has %d good bytes of %d: %v", errNotJoinable, pos, n, seg.end-seg.offset, err)
		}
	}
	return nil
}

// readEnd returns the cursor at the end of the segment at pos, without its
// checksum.
func (s *shadowWAL) readEnd(pos Pos) (cur walCursor, err error) {
	var header walHeader
	if pos.Offset > 0 {
		rc, err := s.open(pos.Truncate())
		if err != nil {
			return cur, err
		}
		if header, err = readHeader(rc); err != nil {
			return cur, err
		}
	}
	rc, err := s.open(pos)
	if err != nil {
		return cur, err
	}
	return readTail(rc, pos.Offset, header)
}

// readIndex returns the cursor at the end of an index, without its checksum. An
// error says that a segment is missing or torn.
func (s *shadowWAL) readIndex(generation string, idx shadowIndex) (cur walCursor, err error) {
	for _, seg := range idx.segments {
		pos := Pos{generation, idx.index, seg.offset}
		if cur.offset != seg.offset {
			return cur, fmt.Errorf("segment %s: the one before ends at %s", pos, FormatOffset(cur.offset))
		}
		rc, err := s.open(pos)
		if err != nil {
			return cur, err
		}
		if cur, err = readTail(rc, seg.offset, cur.header); err != nil {
			return cur, fmt.Errorf("segment %s: %w", pos, err)
		}
	}
	return cur, nil
}

// readTail decompresses the segment that begins at pos and returns the cursor
// behind it: where it ends, and the header of its last frame. The checksums of
// the cursor are those in that header; the caller proves them against a WAL.
func readTail(rc io.ReadCloser, offset int64, header walHeader) (_ walCursor, err error) {
	zr := newFrameReader(rc)
	defer func() { err = errors.Join(err, zr.Close()) }()
	cur := walCursor{header: header, offset: offset}
	if offset == 0 {
		var b [WALHeaderSize]byte
		if _, err := io.ReadFull(zr, b[:]); err != nil {
			return cur, err
		}
		if cur.header, err = parseWALHeader(b[:]); err != nil {
			return cur, err
		}
		cur = startWAL(cur.header)
	}
	frame := make([]byte, cur.header.frameSize())
	for {
		_, err := io.ReadFull(zr, frame)
		if err == io.EOF {
			return cur, nil
		} else if err != nil {
			return cur, err
		}
		cur.offset += int64(len(frame))
		cur.last = [WALFrameHeaderSize]byte(frame)
	}
}

// readHeader decompresses the WAL header that a segment of offset 0 begins with.
func readHeader(rc io.ReadCloser) (h walHeader, err error) {
	zr := newFrameReader(rc)
	defer func() { err = errors.Join(err, zr.Close()) }()
	var b bytes.Buffer
	if _, err := io.CopyN(&b, zr, WALHeaderSize); err != nil {
		return h, err
	}
	return parseWALHeader(b.Bytes())
}

// capturedAfter returns when the first segment behind pos was captured, in the
// current generation of which newest is the end. The zero time means that
// there is none.
func (s *shadowWAL) capturedAfter(pos, newest Pos) time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	if pos.Generation != newest.Generation {
		pos = Pos{}
	}
	for _, idx := range s.mu.indexes {
		if idx.index < pos.Index {
			continue
		}
		for _, seg := range idx.segments {
			if idx.index > pos.Index || seg.offset >= pos.Offset {
				return seg.createdAt
			}
		}
	}
	return time.Time{}
}
