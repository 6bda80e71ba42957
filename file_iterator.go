package litestream

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"example.com/litestream/internal/fsys"
)

// errIteratorClosed is returned by Append on a closed iterator.
var errIteratorClosed = errors.New("wal segment iterator is closed")

// FileWALSegmentIterator walks over the segments of a shadow WAL, and goes on
// with those that are appended while it is in use: when Next returned false
// and Err is nil, wait on NotifyCh and call Next again.
//
// It reads one index directory at a time, when the walk comes to it. A
// directory that was pruned meanwhile is an error that matches fs.ErrNotExist:
// the walk would have a hole.
//
// Next and WALSegment are for one goroutine. Append, SetErr, Close and the
// other methods are safe to call from any.
type FileWALSegmentIterator struct {
	dir        string
	generation string
	notify     chan struct{}

	// onClose, if not nil, is called once, by the first Close, with no lock
	// held. It is set before the iterator is shared.
	onClose func(*FileWALSegmentIterator)

	// A leaf lock: never held across I/O or a call out.
	mu struct {
		sync.Mutex
		indexes []int            // whose directories are not read yet, ascending
		reading bool             // Next is reading the directory of indexes[0]
		infos   []WALSegmentInfo // known and not visited yet, in order
		known   WALSegmentInfo   // the last one that infos ever held
		any     bool             // known is set
		cur     WALSegmentInfo
		err     error
		closed  bool
	}
}

// NewFileWALSegmentIterator returns an iterator over the given indexes of a
// generation. The directory holds one directory for each index.
func NewFileWALSegmentIterator(dir, generation string, indexes []int) *FileWALSegmentIterator {
	itr := &FileWALSegmentIterator{dir: dir, generation: generation, notify: make(chan struct{}, 1)}
	itr.mu.indexes = slices.Compact(slices.Sorted(slices.Values(indexes)))
	return itr
}

// Close ends the iteration: Next returns false and Append an error. It may be
// called more than once and always returns nil.
func (itr *FileWALSegmentIterator) Close() error {
	itr.mu.Lock()
	first := !itr.mu.closed
	itr.mu.closed = true
	itr.mu.infos, itr.mu.indexes = nil, nil
	itr.mu.Unlock()
	if first && itr.onClose != nil {
		itr.onClose(itr)
	}
	return nil
}

// Generation returns the generation whose segments it walks over.
func (itr *FileWALSegmentIterator) Generation() string { return itr.generation }

// Indexes returns the indexes whose segments are not all known yet.
func (itr *FileWALSegmentIterator) Indexes() []int {
	itr.mu.Lock()
	defer itr.mu.Unlock()
	return slices.Clone(itr.mu.indexes)
}

// NotifyCh returns a channel that receives after Append added a segment and
// after SetErr. Several of them may be one receive.
func (itr *FileWALSegmentIterator) NotifyCh() <-chan struct{} { return itr.notify }

func (itr *FileWALSegmentIterator) signal() {
	select {
	case itr.notify <- struct{}{}:
	default:
	}
}

// Err returns the first error of the iteration.
func (itr *FileWALSegmentIterator) Err() error {
	itr.mu.Lock()
	defer itr.mu.Unlock()
	return itr.mu.err
}

// SetErr ends the iteration with err, unless it has an error already. A nil
// err does nothing.
func (itr *FileWALSegmentIterator) SetErr(err error) {
	if err == nil {
		return
	}
	itr.mu.Lock()
	itr.setErrLocked(err)
	itr.mu.Unlock()
	itr.signal()
}

func (itr *FileWALSegmentIterator) setErrLocked(err error) {
	if itr.mu.err == nil {
		itr.mu.err = err
	}
}

// WALSegment returns the segment that Next moved to.
func (itr *FileWALSegmentIterator) WALSegment() WALSegmentInfo {
	itr.mu.Lock()
	defer itr.mu.Unlock()
	return itr.mu.cur
}

// Next moves to the next segment and reports whether there is one. It returns
// false without an error at the present end of the shadow WAL.
func (itr *FileWALSegmentIterator) Next() bool {
	for {
		index, ok, more := itr.pop()
		if !more {
			return ok
		}
		infos, err := readIndexDir(itr.dir, itr.generation, index)
		itr.addListing(infos, err)
	}
}

// pop moves to the next known segment. If none is known but a directory is
// left to read, more is true, and the caller reads that of index.
func (itr *FileWALSegmentIterator) pop() (index int, ok, more bool) {
	itr.mu.Lock()
	defer itr.mu.Unlock()
	switch mu := &itr.mu; {
	case mu.err != nil || mu.closed:
		return 0, false, false
	case len(mu.infos) > 0:
		mu.cur, mu.infos = mu.infos[0], mu.infos[1:]
		return 0, true, false
	case len(mu.indexes) > 0:
		mu.reading = true
		return mu.indexes[0], false, true
	default:
		return 0, false, false
	}
}

// addListing ends the reading of the directory of the first pending index.
func (itr *FileWALSegmentIterator) addListing(listed []WALSegmentInfo, err error) {
	itr.mu.Lock()
	defer itr.mu.Unlock()
	itr.mu.reading = false
	if itr.mu.closed {
		return
	}
	itr.mu.indexes = itr.mu.indexes[1:]
	if err != nil {
		itr.setErrLocked(err)
		return
	}
	// What was appended meanwhile may or may not be in the listing.
	appended := itr.mu.infos
	itr.mu.infos = nil
	for _, info := range append(listed, appended...) {
		if n := len(itr.mu.infos); n == 0 || itr.mu.infos[n-1].Offset < info.Offset {
			itr.pushLocked(info)
		}
	}
}

func (itr *FileWALSegmentIterator) pushLocked(info WALSegmentInfo) {
	itr.mu.infos = append(itr.mu.infos, info)
	itr.mu.known, itr.mu.any = info, true
}

// Append adds a segment, which must be complete on disk, behind all others.
// One that the iterator already has, or will find in a directory that it has
// not read yet, is ignored. One of another generation ends the iteration with
// an error that matches ErrGenerationChanged, and one that leaves out an index
// ends it too. An ended or closed iterator returns an error.
func (itr *FileWALSegmentIterator) Append(info WALSegmentInfo) error {
	itr.mu.Lock()
	added, err := itr.appendLocked(info)
	itr.mu.Unlock()
	if added || err != nil {
		itr.signal()
	}
	return err
}

func (itr *FileWALSegmentIterator) appendLocked(info WALSegmentInfo) (added bool, err error) {
	mu := &itr.mu
	if mu.closed {
		return false, errIteratorClosed
	}
	if mu.err != nil {
		return false, mu.err
	}
	if info.Generation != itr.generation {
		mu.err = fmt.Errorf("append wal segment %s to generation %s: %w", info.Pos(), itr.generation, ErrGenerationChanged)
		return false, mu.err
	}
	last, ok := itr.lastIndexLocked()
	switch {
	case ok && info.Index-1 > last: // indexes are dense (I1)
		mu.err = fmt.Errorf("append wal segment %s: segments of index %s are missing", info.Pos(), FormatIndex(last+1))
		return false, mu.err
	case !ok || info.Index-1 == last:
		if info.Offset == 0 && len(mu.indexes) == 0 && len(mu.infos) == 0 {
			itr.pushLocked(info) // nothing before it is to be found on disk
		} else {
			mu.indexes = append(mu.indexes, info.Index)
		}
		return true, nil
	case mu.reading && info.Index == mu.indexes[0]:
		itr.pushLocked(info) // the listing may have missed it
		return true, nil
	case slices.Contains(mu.indexes, info.Index), mu.any && info.Pos().compare(mu.known.Pos()) <= 0:
		return false, nil
	default:
		itr.pushLocked(info)
		return true, nil
	}
}

// lastIndexLocked returns the highest index that the iterator knows of.
func (itr *FileWALSegmentIterator) lastIndexLocked() (index int, ok bool) {
	if n := len(itr.mu.indexes); n > 0 {
		return itr.mu.indexes[n-1], true
	}
	return itr.mu.known.Index, itr.mu.any
}

// readIndexDir lists the segments of one index in order of their offsets. It
// ignores unfinished files and other names.
func readIndexDir(dir, generation string, index int) ([]WALSegmentInfo, error) {
	name := filepath.Join(dir, FormatIndex(index))
	ents, err := fsys.OS.ReadDir(name)
	if err != nil {
		return nil, fmt.Errorf("read wal segments: %w", err)
	}
	var infos []WALSegmentInfo
	for _, ent := range ents {
		base, ok := strings.CutSuffix(ent.Name(), WALSegmentExt)
		if !ok || ent.IsDir() {
			continue
		}
		offset, err := ParseOffset(base)
		if err != nil {
			continue
		}
		fi, err := ent.Info()
		if err != nil {
			return nil, fmt.Errorf("read wal segments: %w", err)
		}
		infos = append(infos, WALSegmentInfo{
			Generation: generation,
			Index:      index,
			Offset:     offset,
			Size:       fi.Size(),
			CreatedAt:  fi.ModTime().UTC(),
		})
	}
	return infos, nil // ReadDir sorts by name, which is by offset
}

// lowest returns the lowest index that the iterator may still read, or whose
// segment its user is reading.
func (itr *FileWALSegmentIterator) lowest() (index int, ok bool) {
	itr.mu.Lock()
	defer itr.mu.Unlock()
	switch mu := &itr.mu; {
	case mu.closed || mu.err != nil:
		return 0, false
	case mu.cur.Generation != "":
		return mu.cur.Index, true
	case len(mu.infos) > 0:
		return mu.infos[0].Index, true
	case len(mu.indexes) > 0:
		return mu.indexes[0], true
	}
	return 0, false
}
