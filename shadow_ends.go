package litestream

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"example.com/litestream/internal/atomicfile"
	"example.com/litestream/internal/fsys"
)

// indexEnds is what the ends file of a generation holds: where its latest WAL
// indexes ended. A power loss may take the last segment of an index, and leave
// what was captured after it; that leaves no gap between segments, but an index
// whose end is not the one noted here. As the shadow WAL, the file is not synced:
// what the power loss took of the file itself makes an index look incomplete,
// never an incomplete one look whole.
//
// It is a ring of slots, each an index and an offset, big-endian. Older indexes
// than it has slots for are kept for replicas that are far behind. Should the
// next open come before they catch up, they begin anew from a snapshot.
type indexEnds []byte

const (
	endSlots    = 4096
	endSlotSize = 16
)

func endSlot(index int) int64 { return int64(index%endSlots) * endSlotSize }

// has reports whether index is known to have ended at offset.
func (e indexEnds) has(index int, offset int64) bool {
	at := endSlot(index)
	if int64(len(e)) < at+endSlotSize {
		return false
	}
	b := e[at:]
	return binary.BigEndian.Uint64(b) == uint64(index) && binary.BigEndian.Uint64(b[8:]) == uint64(offset)
}

// readEnds reads the ends file of a generation. Without one nothing is known.
func (s *shadowWAL) readEnds(generation string) (indexEnds, error) {
	b, err := readFile(s.fs, s.meta.ends(generation))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return b, err
}

// noteEnd notes that pos is where its index ended. It comes before the first
// segment of the next index (I1).
func (s *shadowWAL) noteEnd(pos Pos) (err error) {
	open := func() (fsys.File, error) {
		return s.fs.OpenFile(s.meta.ends(pos.Generation), os.O_WRONLY|os.O_CREATE, metaFile.Mode)
	}
	f, err := open()
	if errors.Is(err, fs.ErrNotExist) { // somebody removed the directory
		if err = atomicfile.MkdirAll(s.fs, s.meta.generation(pos.Generation), metaPath); err == nil {
			f, err = open()
		}
	}
	if err != nil {
		return fmt.Errorf("note end of wal index: %w", err)
	}
	defer func() {
		if err = errors.Join(err, f.Close()); err != nil {
			err = fmt.Errorf("note end of wal index: %w", err)
		}
	}()
	var b [endSlotSize]byte
	binary.BigEndian.PutUint64(b[:], uint64(pos.Index))
	binary.BigEndian.PutUint64(b[8:], uint64(pos.Offset))
	_, err = f.WriteAt(b[:], endSlot(pos.Index))
	return err
}
