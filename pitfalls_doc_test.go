// Package litestream_test holds the tests of the library that see it as a
// program does.
//
// # What went wrong before
//
// PITFALLS.md, in the project's shared notes, lists faults of systems of this
// kind. These tests fail on the wrong behaviour; TestPitfallsTable checks that
// they exist. Tests without a package are of the root.
//
//	1 TestHostKeepsItsLocksThroughEveryCall TestVisitorsLeaveTheWALAndEveryCommit
//	2 TestPitfall_SecondSQLiteInTheProcessIsWarnedOf
//	3 TestCheckSQLiteVersion
//	4 TestStress_CheckpointsOfEveryModeLoseNothing TestStress_CheckpointsOfTheHostLoseNothing TestStress_SaturatingWritersKeepOneGeneration TestKeeperLosesNoFrame
//	5 TestPitfall_TwoWALRestartsDoNotPassForOne TestPitfall_LostPinBeginsANewGeneration TestClassify TestResumeProvesTheOldPosition
//	6 TestPitfall_OneRestartUnderReadMarkZeroLosesNothing TestKeeperLosesNoFrame TestCaptureRestartBetweenReads
//	7 TestPitfall_SnapshotsAndRestartsKeepTheGeneration TestPitfall_FailedFirstSnapshotIsMadeUpFor
//	8 TestPitfall_TornFrameInTheMiddleBeginsANewGeneration TestResumeProvesTheOldPosition
//	9 TestPitfall_FailedUploadIsRetriedWithoutANewWrite TestPitfall_WriteThatLandsLateLeavesNoGap TestBackoffNext TestPitfall_TornSegmentAtTheReplicasPositionIsNoStandstill
//	10 TestPitfall_IteratorErrorEndsTheIteratorAlone TestPitfall_ListingErrorIsReportedAndRecoveredFrom TestFileWALSegmentIterator_AppendIsIdempotent fileclient.TestListingFaultIsReported
//	11 TestPitfall_ClientThatReturnsUnreadLeavesNothingBehind TestSnapshotStreamClosedEarly
//	12 TestPitfall_DamagedShadowSegmentIsNoSuccess TestPitfall_WhatTheClientDidNotReadIsNotTakenForStored TestPitfall_ShadowSegmentTornByAPowerLossIsNotUploaded TestFaultLife
//	13 TestPitfall_FailedFirstSyncLeavesNothingHalfDone TestPitfall_WriteLockDoesNotKeepTheFirstSyncFromWorking TestOpenWaitsForAHostThatHoldsTheDatabaseAlone
//	14 TestRestore_EveryFlippedByteIsAnError TestRestore_EveryFlippedWALByteIsAnError TestRestore_SegmentThatEndsInsideATransactionIsAnError TestRestore_MissingDoubledAndSwappedSegmentsAreErrors TestWALDownloader_DamageIsAnError
//	15 TestRetention_GenerationBornWhileListingStays TestPlanRetention
//	16 TestPitfall_LaggingReplicaIsNotPrunedAway TestPitfall_GapOnAReplicaIsBridgedBySnapshot TestPitfall_GapBesideTheReplicasIndexIsNotHidden
//	17 TestSecondManagerIsRefused TestDB_OpenTwiceIsAnErrorAndASecondManagerATypedOne TestLockManagerExcludes
//	18 TestPitfall_RemovedWALIsNoticed TestPitfall_RemovedWALIsNoticedByTheMonitor TestWatchFollowsReplacedFile
//	19 TestPitfall_DatabaseRenamedOverIsATypedError TestPitfall_DeletedDatabaseIsATypedError
//	20 TestFaultLife TestPitfall_UnfinishedFilesAreSweptAtOpen TestCaptureGoesOnAfterAnyFault internal/atomicfile.TestWriteFaultLeavesOldFileOrCompleteNewOne fileclient.TestWriteFaultIsReportedAndRetryIsDurable
//	21 TestFollower_ReadersSeeConsistentStates TestFollower_AppliesTwiceAfterACrash
//	22 TestRestoreAt_EveryMomentIsExact TestHistory
//	23 TestPitfall_LateSnapshotOfAnOldGenerationIsNotTheLatest TestFindIndexByTimestamp_BeforeTheFirstSnapshotIsAnError TestRestoreAt_EveryMomentIsExact TestHistory
//	24 TestRetention_CutoffStaysRestorableAndOlderGoes TestHistory_RetentionOfADatabaseAtRestKeepsTheCutoff TestPlanRetention
//	25 TestRestoreLatest_EmptyAndBrokenGenerationsDoNotHideAGoodOne TestFindLatestGeneration_SkipsWhatCannotBeRestored TestPlanRestore_ChoosesWhatCanBeRestored
//	26 TestRestore_PlansAgainWhenRetentionRunsMeanwhile TestPlanRestore_ListsAgainWhenRetentionRunsMeanwhile TestHistory_RetentionUnderARunningRestore
//	27 TestLatestReplica_JoinedSegmentReachesFurther TestRestore_BrokenAndShortBodies TestFindLatestGeneration_DoesNotDependOnTheListing TestPlanRestore_ChoosesWhatCanBeRestored TestSliceIterator_SortsWhateverTheClientsOrder
//	28 TestStress_LongReaderDoesNotStallWriters TestCheckpointPolicyDue
//	29 TestPitfall_LibraryDoesNotFeedItself TestIdleDatabasesDoNothing
//	30 TestStress_ManySmallCommitsKeepTheWALSmall
//	31 TestPitfall_RolledBackSpillHidesNoCommit TestCaptureFindsCommitBeforeStaleTail TestPitfall_CommitOverAFailedOneIsCaptured TestPitfall_FailedCommitIsNotTheEndOfAnIndex
//	32 TestPitfall_LostEventsDelayTheCaptureByOnePoll TestWatchOverflowWakesAll
//	33 TestPitfall_PragmasHoldOnEveryConnection
//	34 TestPitfall_CancelledContextKeepsThePin
//	35 TestPitfall_CloseBringsTheLastWrites TestPitfall_CloseBeforeTheHostKeepsTheGenerationIfNothingIsWritten TestRestart_SameObjectClosedTwiceAndOpenedAgain
//	36 TestPitfall_FullDiskHarmsNeitherHostNorReplica TestFaultLife TestSpoolFileFaults
//	37 TestRestore_ExistingFilesAreNeverTouched TestRestore_CancelLeavesNothing TestRestore_FileSystemFaultsLeaveNothing internal/atomicfile.TestCreateNeverReplaces
//	38 TestPitfall_PageSizeChangedWhileClosed TestPitfall_JournalModeChangedWhileClosed TestPitfall_JournalModeIsATypedError
//	39 TestRestore_EqualsSQLiteCheckpoint TestRestore_SparseDatabaseAcrossTheLockPage TestWorkload_RestoresByteForByte
//	40 TestPitfall_LastIndexBeginsANewGeneration TestParseIndex_Limits TestParseOffset_Limits TestStreamRecordHeader_RoundTripAtTheLimits
//	41 TestPitfall_ClockSetBackDuringASnapshot TestPitfall_GenerationThatIsOutrankedIsReported TestRetention_ClockSetForwardDeletesNothing TestRetention_ClockSetBackCollapsesNoHistory TestPlanRetention
//	42 TestServer_ManyDatabases TestPitfall_IdleDatabasesAskTheReplicaNothing TestIdleDatabasesDoNothing
//	43 TestJobs_SnapshotScheduleGoesOnAcrossRestarts TestJobs_RetentionRunsSoonAfterTheStart
//	44 TestPitfall_OddPathsAreReplicated TestPitfall_LinksAndRelativePathsAreResolved TestServer_NamesOfOneFileAreOneDatabase TestDSNOpensOddPaths
//	45 TestPitfall_UnopenedAndClosedObjectsReturnErrors TestPitfall_NothingIsWrittenToStandardOutput TestServer_UseBeforeOpenAndAfterClose
//
// Row 40 also asks for a vet with GOARCH=386, which the checks of the project
// run.
package litestream_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

const (
	pitfallRows  = 45
	followerRow  = 21
	followerName = "TestFollower"
)

// moduleTests returns the tests of the module, by directory and name, as the
// table spells them.
func moduleTests(t *testing.T) map[string]bool {
	t.Helper()
	tests := make(map[string]bool)
	if err := filepath.WalkDir(".", func(name string, ent fs.DirEntry, err error) error {
		if err != nil || ent.IsDir() || !strings.HasSuffix(name, "_test.go") {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		prefix := ""
		if dir := path.Dir(filepath.ToSlash(name)); dir != "." {
			prefix = dir + "."
		}
		for _, decl := range file.Decls {
			if fn, ok := decl.(*ast.FuncDecl); ok && fn.Recv == nil && strings.HasPrefix(fn.Name.Name, "Test") {
				tests[prefix+fn.Name.Name] = true
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return tests
}

// pitfallsFaults returns what is wrong with the table in a package comment.
func pitfallsFaults(doc string, tests map[string]bool) (faults []string) {
	report := func(format string, a ...any) { faults = append(faults, fmt.Sprintf(format, a...)) }
	row := 0
	for _, line := range regexp.MustCompile(`(?m)^\t(\d+) +(.*)$`).FindAllStringSubmatch(doc, -1) {
		row++
		if n, err := strconv.Atoi(line[1]); err != nil || n != row {
			report("row %s stands in the place of row %d", line[1], row)
		}
		names := strings.Fields(line[2])
		if row == followerRow && len(names) > 0 && names[0] == "to" {
			for name := range tests {
				if strings.HasPrefix(name, followerName) {
					report("row %d: name the tests of followers, such as %s", row, name)
				}
			}
			continue
		}
		if len(names) == 0 {
			report("row %d names no test", row)
		}
		for _, name := range names {
			if !tests[name] {
				report("row %d: there is no test %s", row, name)
			}
		}
	}
	if row != pitfallRows {
		report("%d rows, want %d", row, pitfallRows)
	}
	return faults
}

func TestPitfallsTable(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "pitfalls_doc_test.go", nil, parser.ParseComments|parser.PackageClauseOnly)
	if err != nil {
		t.Fatal(err)
	}
	doc, tests := file.Doc.Text(), moduleTests(t)
	for _, fault := range pitfallsFaults(doc, tests) {
		t.Error(fault)
	}
	// What is wrong is found.
	for what, spoil := range map[string]func(string) string{
		"there is no test TestKeeperLosesAFrame": func(s string) string { return strings.Replace(s, "TestKeeperLosesNoFrame", "TestKeeperLosesAFrame", 1) },
		"stands in the place of row 9":           func(s string) string { return strings.Replace(s, "\t9 ", "\t10 ", 1) },
		"44 rows":                                func(s string) string { return regexp.MustCompile(`(?m)^\t45 .*$`).ReplaceAllString(s, "") },
		"names no test":                          func(s string) string { return regexp.MustCompile(`(?m)^\t3 .*$`).ReplaceAllString(s, "\t3 ") },
	} {
		if faults := strings.Join(pitfallsFaults(spoil(doc), tests), "\n"); !strings.Contains(faults, what) {
			t.Errorf("not found: %s; but %q", what, faults)
		}
	}
	if faults := pitfallsFaults(doc, map[string]bool{"TestFollower_ReadersSeeConsistentStates": true}); strings.Contains(doc, "\t21 to be") &&
		!strings.Contains(strings.Join(faults, "\n"), "name the tests of followers") {
		t.Error("a row that waits for its tests was not noticed when they came")
	}
}
